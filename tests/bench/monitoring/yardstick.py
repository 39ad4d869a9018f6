"""Evidently's default verdicts, in Evidently's own environment: it imports nothing of ours.

    .tools/evidently/bin/python tests/bench/monitoring/yardstick.py FOLDER...

Each folder holds `reference.parquet` and `live.parquet`. Writes a line of JSON for each: the columns that drifted, by which
method, and the seconds from both frames in memory to the verdict.
"""

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from evidently import DataDefinition, Dataset, Report
from evidently.presets import DataDriftPreset

AT_MOST = {"K-S p_value"}
"""Methods that call it drift at the threshold too; of other tests it is below, of distances from it on."""


def verdict(reference: pd.DataFrame, live: pd.DataFrame) -> dict[str, Any]:
    """Return what Evidently says of each column, and of both frames together."""
    text = [name for name in reference if reference[name].dtype == object]
    definition = DataDefinition(
        numerical_columns=[name for name in reference if name not in text], categorical_columns=text
    )
    began = time.perf_counter()
    ours, theirs = (Dataset.from_pandas(frame, data_definition=definition) for frame in (live, reference))
    said = Report([DataDriftPreset()]).run(ours, theirs).dict()["metrics"]
    took = time.perf_counter() - began
    columns = {m["config"]["column"]: m for m in said if "ValueDrift" in m["config"]["type"]}
    (share,) = (m for m in said if "DriftedColumnsCount" in m["config"]["type"])
    return {
        "seconds": took,
        "drifted": {name: _drifted(one) for name, one in columns.items()},
        "methods": {name: one["config"]["method"] for name, one in columns.items()},
        "scores": {name: float(one["value"]) for name, one in columns.items()},
        "moved": bool(share["value"]["share"] >= share["config"]["drift_share"]),
    }


def _drifted(said: dict[str, Any]) -> bool:
    method, threshold, value = said["config"]["method"], said["config"]["threshold"], said["value"]
    if "p_value" not in method:
        return bool(value >= threshold)
    return bool(value <= threshold if method in AT_MOST else value < threshold)


def main(folders: list[str]) -> None:
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    for folder in map(Path, folders):
        reference, live = (pd.read_parquet(folder / f"{side}.parquet") for side in ("reference", "live"))
        print(json.dumps(verdict(reference, live)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
