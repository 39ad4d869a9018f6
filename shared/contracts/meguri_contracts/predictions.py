"""How inference tells what it predicted: the messages of the stream PREDICTIONS.

A message is an Arrow IPC stream with a row for each predicted row. What all of its rows share stands once, in the metadata of
the schema under `HEAD`. Its columns are those of `PER_ROW`, the features, and the answer: `label` and `probability`, `label`
and `score`, or `prediction`. The features are one column `FEATURES`, a list of all values of the row, where the head has their
names, and a column each where it has not.

The id of a prediction follows from its row: `time` since 1970 in microseconds (14 hex digits), `process`, `_number` (6 hex
digits), and `:<_row>` if its request had several rows. So does its trace id, where none is told: the id of the request and
`trace_suffix`.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

from meguri_contracts.events import Role

HEAD = b"meguri.predictions"
PER_ROW = ("time", "_number", "_row", "producer", "trace_id", "_entity", "_latency")
"""`_row` counts from 0 and is -1 where a request has one row only. A `trace_id` that is null or empty is the one that follows
from the id. `_latency` is in microseconds. `producer`, `trace_id` and `_entity` are without a type where they are of no row."""

FEATURES = "_features"


class PredictionsHead(BaseModel):
    """What the rows of a message have in common. `process` is the part of their ids that tells replicas apart."""

    model_config = ConfigDict(frozen=True)

    model: str
    version: int
    role: Role
    process: Annotated[str, StringConstraints(pattern="^[0-9a-f]{8}$")]
    trace_suffix: Annotated[str, StringConstraints(pattern="^[0-9a-f]{4}$")]
    producer: str | None = None
    """Who asked for all of them, if it was one; else the column says it."""
    features: tuple[str, ...] = ()
