"""Rows of three producers, and the reference and the rule that they are judged by."""

import numpy as np
import polars as pl

from meguri_chassis.profiles import Profile, profile_of
from meguri_contracts import events
from meguri_contracts.spec import Monitor

NUMBERS = ["spend", "age", "visits"]
PLANS = np.array(["basic", "plus", "pro", ""])
RULE = Monitor(window_rows=600)
WINDOW = events.Window(first=7, last=19, rows=600)


def rows(n: int, seed: int) -> pl.DataFrame:
    """Rows of three producers as they were in training, answers too."""
    random = np.random.default_rng(seed)
    columns = {name: random.normal(size=n) for name in NUMBERS}
    plans = PLANS[random.choice(4, size=n, p=[0.5, 0.3, 0.15, 0.05])]
    return pl.DataFrame(
        {
            "prediction_id": [f"p-{i}" for i in range(n)],
            "trace_id": [f"t-{i}" for i in range(n)],
            "producer": ["abc"[i % 3] for i in range(n)],
            **columns,
            "plan": plans,
            "label": random.choice(3, size=n, p=[0.6, 0.3, 0.1]),
            "probability": random.beta(5, 2, size=n),
        }
    )


def reference_of(frame: pl.DataFrame) -> Profile:
    return profile_of(
        NUMBERS,
        frame.select(NUMBERS).to_numpy(),
        {"plan": frame["plan"].to_list()},
        {"label": frame["label"].cast(pl.String).to_list(), "probability": frame["probability"].to_numpy()},
    )


REFERENCE = reference_of(rows(3_000, 0))
OF_B = pl.col("producer") == "b"


def changed(**columns: pl.Expr) -> pl.DataFrame:
    return rows(600, 1).with_columns(**columns)
