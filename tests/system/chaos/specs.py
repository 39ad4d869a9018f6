"""What is learned while everything is killed: three small models on two datasets, one of them called like its dataset."""

import json
from random import Random
from typing import Any

FEATURES = ("x1", "x2", "x3")
DATASET_OF = {"apples": "apples", "pears": "fruit", "plums": "fruit"}
"""Model and dataset of one name share a key in the log, so that arrivals overtake the decisions about the model."""
DATASETS = tuple(dict.fromkeys(DATASET_OF.values()))
ROWS = 3
"""Rows of an arrival."""
WINDOW_ROWS = 150
"""Predictions that are judged together."""


def spec(model: str, retrain_rows: int) -> bytes:
    """Return the spec of a model that learns again after so many new rows."""
    number = {"type": "number"}
    return json.dumps(
        {
            "model": model,
            "task": "classification",
            "dataset": {
                "name": DATASET_OF[model],
                "columns": {
                    # Of every row that was ever sent another one: doubles are found by it.
                    "row": {"type": "integer"},
                    **dict.fromkeys(FEATURES, number),
                    "sweet": {"type": "integer", "values": [0, 1]},
                },
            },
            "features": FEATURES,
            "target": "sweet",
            "estimator": {"name": "LogisticRegression", "scale": True},
            "validation": {"holdout": 0.25, "seed": 7},
            "gate": "accuracy >= 0.5 and accuracy >= champion.accuracy - 0.01",
            "retrain": {"first_rows": min(retrain_rows, 150), "rows": retrain_rows, "drift": True},
            "monitor": {"window_rows": WINDOW_ROWS, "min_rows": 100, "windows": 2},
        }
    ).encode()


def row(random: Random, number: int) -> dict[str, Any]:
    """Return a labelled row that no check refuses."""
    values = {name: round(random.gauss(0, 1), 3) for name in FEATURES}
    return {"row": number, **values, "sweet": int(values["x1"] + values["x2"] + random.gauss(0, 0.5) > 0)}
