"""Ask Evidently 0.7.23 for its verdicts on the cases: `DO_NOT_TRACK=1 python make.py`, with pandas < 3 beside it."""

import json
from pathlib import Path

import pandas as pd
from cases import cases
from evidently import DataDefinition, Dataset, Report
from evidently.metrics import DriftedColumnsCount, ValueDrift

HERE = Path(__file__).parent


def verdicts(case) -> dict:
    definition = DataDefinition(
        numerical_columns=[name for name, column in case.reference.items() if isinstance(column[0], float)],
        categorical_columns=[name for name, column in case.reference.items() if not isinstance(column[0], float)],
    )
    reference, live = (
        Dataset.from_pandas(pd.DataFrame(rows), data_definition=definition) for rows in (case.reference, case.live)
    )
    report = Report([DriftedColumnsCount(), *(ValueDrift(column=name) for name in case.reference)])
    whole, *columns = report.run(live, reference).dict()["metrics"]
    return {
        "drifted": int(whole["value"]["count"]),
        "columns": {
            one["config"]["column"]: {
                "method": one["config"]["method"],
                "score": float(one["value"]),
                "drifted": _drifted(one["config"]["method"], float(one["value"]), one["config"]["threshold"]),
            }
            for one in columns
        },
    }


def _drifted(method: str, score: float, threshold: float) -> bool:
    """As its tests do: it is left out of what a report says."""
    if method == "K-S p_value":
        return score <= threshold
    return score < threshold if method.endswith("p_value") else score >= threshold


(HERE / "verdicts.json").write_text(json.dumps({case.name: verdicts(case) for case in cases()}, indent=1) + "\n")
