"""A process that works beside the one of the test, and whether it is gone."""

import multiprocessing

import psutil


def worker() -> psutil.Process:
    (process,) = multiprocessing.active_children()
    return psutil.Process(process.pid)


def is_gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
