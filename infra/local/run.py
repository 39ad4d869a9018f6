"""`make run`: starts the laptop's processes, plays the story of examples/digits on real data, goes on until Ctrl-C.

BARE=1 plays nothing; ONCE=1 stops after the story.
"""

import argparse
import asyncio
import os
import runpy
import signal
import sys
import time
from pathlib import Path

from infra.local.processes import ROOT, SERVICES, CannotStart, Laptop
from meguri.client import Meguri, broker
from meguri.provisioning import BrokerAway, NoRoom, limits, provision

READY_WITHIN = 180.0
"""Seconds in which every service must be ready; a cold disk is slow."""


class _Stopped(Exception):
    """Ctrl-C, or SIGTERM from whoever started us."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--once", action="store_true", help="play the story, stop everything, exit 0 if all was observed"
    )
    parser.add_argument("--bare", action="store_true", help="start everything and play nothing, for data of one's own")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    os.chdir(ROOT)
    began = time.monotonic()
    try:
        with Laptop(Path(os.environ.get("MEGURI_VAR", "var"))) as laptop:
            asyncio.run(provision(broker(), **limits()))
            wait_until_ready(laptop)
            print(f"broker and {len(SERVICES)} services are ready after {time.monotonic() - began:.1f} s", flush=True)
            observed = args.bare or runpy.run_path("examples/digits/story.py")["play"](laptop)
            if args.once:
                return 0 if observed else 1
            _go_on(laptop)
    except (CannotStart, BrokerAway, NoRoom) as error:
        print(f"make run: {error}", file=sys.stderr)
        return 1
    except _Stopped:
        print("\nstopped; `make run` goes on where this ended, everything is under var/", flush=True)
    return 0


def wait_until_ready(laptop: Laptop) -> None:
    """Return when every service is ready. Raises CannotStart with the reasons when that takes too long."""
    until = time.monotonic() + READY_WITHIN
    with Meguri() as meguri:
        waiting = list(SERVICES)
        while waiting:
            found = [meguri.health(service) for service in waiting]
            waiting = [one["service"] for one in found if not one["ready"]]
            if not laptop.alive():
                raise CannotStart(f"the process manager ended: see {laptop.var}/log/supervisor.log")
            if waiting and time.monotonic() > until:
                reasons = "; ".join(
                    f"{one['service']}: {', '.join(one['reasons'])}" for one in found if not one["ready"]
                )
                raise CannotStart(f"not ready after {READY_WITHIN:.0f} s: {reasons}; logs are in {laptop.var}/log")
            time.sleep(0.05)


def _go_on(laptop: Laptop) -> None:
    print("\nEverything goes on running until Ctrl-C. Look around with `.venv/bin/meguri --help`.", flush=True)
    while laptop.alive():
        time.sleep(1)
    raise CannotStart(f"the process manager ended: see {laptop.var}/log/supervisor.log")


def _stop(number: int, frame: object) -> None:
    # Once is enough: what stops must not be stopped from stopping.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Stopped


if __name__ == "__main__":
    sys.exit(main())
