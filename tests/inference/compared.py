"""Versions that answer otherwise, and rows as monitoring gives them out."""

import io
from typing import Any

import numpy as np
import pyarrow as pa
from sklearn.linear_model import LogisticRegression

from tests.inference.conftest import Fitted, fitted

FEATURES = ("x", "y")


def grid(rows: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (rows, 2))


def classifier(by: int, features: tuple[str, ...] = FEATURES) -> Fitted:
    """Says whether one of the features is positive."""
    x = grid(400)
    return fitted("signs", LogisticRegression(C=1e4), x, (x[:, by] > 0).astype(int), features, "FP64")


def recorded(x: np.ndarray, /, **columns: Any) -> bytes:
    """Rows as monitoring gives them out."""
    ids = [f"p-{row:04d}" for row in range(len(x))]
    table = pa.table(
        {
            "prediction_id": ids,
            "version": pa.repeat(1, len(x)),
            "producer": ["left" if row[0] < 0 else "right" for row in x],
            **dict(zip(FEATURES, x.T, strict=True)),
        }
        | columns
    )
    return stream(table)


def stream(table: pa.Table) -> bytes:
    out = io.BytesIO()
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()
