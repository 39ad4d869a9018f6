"""`make bench-monitoring`: monitoring side by side with what one would use without us; ARGS="--quick P9" chooses.

    P8     the prediction log: what it takes from serving, and how fast rows get to monitoring's sketches and tables
    P9     profile and verdict of a million rows against Evidently, and how often the compatibility mode says the same
    P10    memory of monitoring after ten million rows against that after a hundred thousand
    R3     alarms while nothing happens, and how soon a small shift is found

Evidently runs in an environment of its own below .tools/evidently. Nothing is asserted.
"""

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from tests.bench.monitoring import against_evidently, false_alarms, memory
from tests.bench.serving import kept
from tests.bench.serving.requests import NotMeasured
from tests.bench.serving.setting import Setting

PAIRS = 5
SECONDS = 2


class Measured:
    """A run: where it writes, and how thorough it is."""

    def __init__(self, folder: Path, stack: ExitStack, pairs: int, quick: bool) -> None:
        self.folder, self.pairs, self.quick = folder, pairs, quick
        self.serving = Setting(folder, stack, pairs, 1 if quick else SECONDS)

    def prediction_log(self) -> Iterator[str]:
        yield from kept.cost(self.serving)
        yield from kept.flow(self.serving)

    def evidently(self) -> Iterator[str]:
        yield from against_evidently.agreement(self.folder, 10 if self.quick else 200)
        yield from against_evidently.speed(self.folder, self.pairs, 100_000 if self.quick else 1_000_000)

    def memory(self) -> Iterator[str]:
        yield from memory.steady(self.serving, 1_000_000 if self.quick else 10_000_000)

    def alarms(self) -> Iterator[str]:
        yield from false_alarms.quiet(100 if self.quick else 1_000)
        yield from false_alarms.shifted(10 if self.quick else 100)


ROWS: dict[str, Callable[[Measured], Iterator[str]]] = {
    "P8": Measured.prediction_log,
    "P9": Measured.evidently,
    "P10": Measured.memory,
    "R3": Measured.alarms,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", default=list(ROWS), help="which rows to measure")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="how often each side is measured")
    parser.add_argument("--quick", action="store_true", help="little of everything: to see that it works")
    asked = parser.parse_args()
    if unknown := set(asked.rows) - set(ROWS):
        parser.error(f"{', '.join(sorted(unknown))} is not one of {', '.join(ROWS)}")
    # So that what was started is stopped then too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    print(f"{1 if asked.quick else asked.pairs} pairs, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        measured = Measured(folder, stack, 1 if asked.quick else asked.pairs, asked.quick)
        for row in asked.rows:
            _print(row, ROWS[row](measured))


def _print(row: str, lines: Iterator[str]) -> None:
    try:
        for line in lines:
            print(f"{row:5} {line}", flush=True)
    except NotMeasured as error:
        print(f"{row:5} not measured: {error}", flush=True)


if __name__ == "__main__":
    main()
