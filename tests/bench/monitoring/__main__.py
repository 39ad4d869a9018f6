"""`make bench-monitoring`: monitoring side by side with what one would use without us; ARGS="--quick P9" chooses.

    P8     the prediction log: what it takes from serving, and how fast rows get to monitoring's sketches and tables
    P9     profile and verdict of a million rows against Evidently, and how often the compatibility mode says the same
    P10    memory of monitoring after ten million rows against that after a hundred thousand
    R3     alarms while nothing happens, and how soon a small shift is found

Evidently runs in an environment of its own below .tools/evidently. Nothing is asserted.
"""

from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from tests.bench import rows
from tests.bench.monitoring import against_evidently, false_alarms, memory
from tests.bench.serving import kept
from tests.bench.serving.setting import Setting

SECONDS = 2


class Measured:
    """A run: where it writes, and how thorough it is."""

    def __init__(self, folder: Path, stack: ExitStack, asked: Namespace) -> None:
        self.folder, self.pairs, self.quick = folder, asked.pairs, asked.quick
        self.serving = Setting(folder, stack, asked.pairs, 1 if asked.quick else SECONDS)

    def cost(self) -> Iterator[str]:
        yield from kept.cost(self.serving)

    def flow(self) -> Iterator[str]:
        yield from kept.flow(self.serving)

    def evidently(self) -> Iterator[str]:
        yield from against_evidently.agreement(self.folder, 10 if self.quick else 200)
        yield from against_evidently.speed(self.folder, self.pairs, 100_000 if self.quick else 1_000_000)

    def memory(self) -> Iterator[str]:
        yield from memory.steady(self.serving, 1_000_000 if self.quick else 10_000_000)

    def alarms(self) -> Iterator[str]:
        yield from false_alarms.quiet(100 if self.quick else 1_000)
        yield from false_alarms.shifted(10 if self.quick else 100)


ROWS: dict[str, tuple[Callable[[Measured], Iterator[str]], ...]] = {
    "P8": (Measured.cost, Measured.flow),
    "P9": (Measured.evidently,),
    "P10": (Measured.memory,),
    "R3": (Measured.alarms,),
}

if __name__ == "__main__":
    rows.main(__doc__, Measured, ROWS)
