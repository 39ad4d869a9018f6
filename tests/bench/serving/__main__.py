"""`make bench-serving`: serving side by side with what one would use without us; ARGS="--quick P1 P2" chooses.

    table  every size of request, encoding and number of connections
    P1     one row a request, 64 connections, against a FastAPI and scikit-learn server written by hand
    P2     the same against the bare ASGI server that ours runs on
    P3     p99 at 16 connections
    P4     256 rows in binary tensors, against ONNX Runtime alone
    P5     20 promotions under a steady load
    P8     the prediction log: what it takes from P1, and how fast rows get to monitoring's sketches and tables

Ours is one process on one core with everything on: validation, ids, prediction log, metrics, traces. The broker and the
client (wrk, if it is installed) have the other core, if there is one. Both sides are measured in turn, right after each
other; "us" is the processor time of the server's processes per request until it had nothing left to do, the figure that
other work on the machine changes least. On a machine with other work,
`nice -n -10 make bench-serving` as root helps. Nothing is asserted.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from tests.bench.serving import figures, kept, promotions, table
from tests.bench.serving.requests import NotMeasured
from tests.bench.serving.servers import CLIENT, SERVER
from tests.bench.serving.setting import Setting

PAIRS = 5
SECONDS = 2
ROWS: dict[str, tuple[Callable[[Setting], Iterator[str]], ...]] = {
    "table": (table.everything,),
    "P1": (figures.throughput,),
    "P2": (figures.against_hello,),
    "P3": (figures.tail,),
    "P4": (figures.large,),
    "P5": (promotions.under_load,),
    "P8": (kept.cost, kept.flow),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", default=list(ROWS), help="which rows to measure")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="how often each side is measured")
    parser.add_argument("--quick", action="store_true", help="one pair of one second: to see that it works")
    asked = parser.parse_args()
    if unknown := set(asked.rows) - set(ROWS):
        parser.error(f"{', '.join(sorted(unknown))} is not one of {', '.join(ROWS)}")
    # So that what was started is stopped then too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    pairs, seconds = (1, 1) if asked.quick else (asked.pairs, SECONDS)
    client = "wrk" if shutil.which("wrk") else "our own client (install wrk for a faster one)"
    print(
        f"server on core {SERVER}, {client} on core {CLIENT}, {pairs} pairs of {seconds} s, load {os.getloadavg()[0]:.1f}"
    )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        setting = Setting(folder, stack, pairs, seconds)
        for row in asked.rows:
            for part in ROWS[row]:
                _print(row, part(setting))


def _print(row: str, lines: Iterator[str]) -> None:
    try:
        for line in lines:
            print(f"{row:5} {line}", flush=True)
    except NotMeasured as error:
        print(f"{row:5} not measured: {error}", flush=True)


if __name__ == "__main__":
    main()
