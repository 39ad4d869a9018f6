"""What benchmarks have in common that print figures row by row: their arguments, a folder, and what could not be measured."""

import argparse
import os
import signal
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from tests.bench.serving.requests import NotMeasured

PAIRS = 5

T = TypeVar("T")


def main(
    about: str | None,
    setting: Callable[[Path, ExitStack, Namespace], T],
    rows: Mapping[str, Sequence[Callable[[T], Iterator[str]]]],
) -> None:
    """Print what is asked for on the command line: `pairs` of each side, or one of each and less of everything (`quick`)."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", default=list(rows), help="which rows to measure")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="how often each side is measured")
    parser.add_argument("--quick", action="store_true", help="one pair, and little of everything: to see that it works")
    asked = parser.parse_args()
    if unknown := set(asked.rows) - set(rows):
        parser.error(f"{', '.join(sorted(unknown))} is not one of {', '.join(rows)}")
    if asked.quick:
        asked.pairs = 1
    # So that what was started is stopped then too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    print(f"{asked.pairs} pairs, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    with ExitStack() as stack:
        made = setting(Path(stack.enter_context(tempfile.TemporaryDirectory())), stack, asked)
        for row in asked.rows:
            for part in rows[row]:
                _print(row, part(made))


def _print(row: str, lines: Iterator[str]) -> None:
    try:
        for line in lines:
            print(f"{row:5} {line}", flush=True)
    except NotMeasured as error:
        print(f"{row:5} not measured: {error}", flush=True)
