"""A worker that crashes takes one test along, not the whole run."""

import re
import subprocess
import sys

from tests.conftest import ROOT

TESTS = """
import os, signal
import pytest

@pytest.mark.parametrize("number", range(30))
def test_one(number):
    if number in CRASHING:
        os.kill(os.getpid(), signal.SIGKILL)
"""
CONFTEST = """
from tests.scheduling import Sharing

def pytest_xdist_make_scheduler(config, log):
    return Sharing(config, log)
"""


def test_what_a_worker_crashes_in_has_failed_and_all_others_run(tmp_path):
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_crashing.py").write_text(TESTS.replace("CRASHING", "(7, 29)"))
    (tmp_path / "pytest.ini").write_text(f"[pytest]\npythonpath = {ROOT}\n")

    command = [sys.executable, "-m", "pytest", "-n", "2", "-p", "no:cacheprovider", "-p", "no:asyncio", str(tmp_path)]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)

    assert "2 failed, 28 passed" in ran.stdout, ran.stdout
    assert set(re.findall(r"crashed while running 'test_crashing.py::test_one\[(\d+)\]", ran.stdout)) == {"7", "29"}
