"""P9: the time to a verdict beside Evidently's, and how often the compatibility mode says the same."""

import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from infra.local.processes import ROOT
from tests.bench.monitoring import frames, ours
from tests.bench.serving.comparing import spread

PYTHON = ROOT / ".tools/evidently/bin/python"
YARDSTICK = ROOT / "tests/bench/monitoring/yardstick.py"
SEED = 20261121
"""Of the frames; nothing was chosen by looking at them."""
NAMED = 5
"""Disagreements that are shown."""


def speed(folder: Path, pairs: int, rows: int) -> Iterator[str]:
    """From both frames in memory to the verdict: ours makes both profiles and judges them."""
    written = frames.large(rows, SEED).write(folder / "large")
    own: list[float] = []
    theirs: list[float] = []
    for _ in range(pairs):
        own.append(_seconds(written))
        theirs.append(_evidently([written])[0]["seconds"])
    ratios = [their / mine for mine, their in zip(own, theirs, strict=True)]
    yield (
        f"{rows:,} rows of 14 numbers and 6 texts: ours {spread(own)} s, Evidently {spread(theirs)} s; "
        f"{spread(ratios, '.1f')} times as fast, goal >= 40"
    )


def agreement(folder: Path, count: int) -> Iterator[str]:
    """The compatibility mode on frames of 200 to 20,000 rows, made and real, on both sides of Evidently's 1000 rows."""
    cases = [case.write(folder / f"case-{at}") for at, case in enumerate(frames.cases(count, SEED))]
    columns = [column for case, said in zip(cases, _evidently(cases), strict=True) for column in _columns(case, said)]
    odd = [column for column in columns if column["ours"] != column["drifted"]]
    yield (
        f"{count} cases, {len(columns)} columns, of which Evidently finds {_share(c['drifted'] for c in columns)} moved: "
        f"the same verdict on {1 - len(odd) / len(columns):.2%} of the columns, goal >= 99%"
    )
    for method, all_ in Counter(column["method"] for column in columns).most_common():
        yield f"{method}: {sum(column['method'] == method for column in odd)} of {all_} otherwise"
    for column in odd[:NAMED]:
        yield "{case} {name}: Evidently {drifted} by {method} ({score:.4f}), ours {ours}".format(**column)


def _columns(case: Path, said: dict[str, Any]) -> Iterator[dict[str, Any]]:
    reference, live = _read(case)
    mine = ours.drifted(ours.reference_of(reference), live, ours.COMPATIBLE)
    for name, drifted in said["drifted"].items():
        method, score = said["methods"][name], said["scores"][name]
        yield {
            "case": case.name,
            "name": name,
            "drifted": drifted,
            "method": method,
            "score": score,
            "ours": mine.get(name),
        }


def _seconds(folder: Path) -> float:
    reference, live = _read(folder)
    began = time.perf_counter()
    ours.judge(ours.reference_of(reference), live, ours.DEFAULT)
    return time.perf_counter() - began


def _read(folder: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    return pl.read_parquet(folder / "reference.parquet"), pl.read_parquet(folder / "live.parquet")


def _evidently(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """What Evidently says of each folder, in one process of its own."""
    command = [str(PYTHON), str(YARDSTICK), *map(str, folders)]
    quiet = os.environ | {"DO_NOT_TRACK": "1"}
    said = subprocess.run(command, cwd=ROOT, env=quiet, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [json.loads(line) for line in said.splitlines()]


def _share(marks: Iterator[bool]) -> str:
    every = list(marks)
    return f"{sum(every) / len(every):.0%}"
