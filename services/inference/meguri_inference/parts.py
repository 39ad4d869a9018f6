"""What a batch is made of: shards that are planned, files of predictions, and the word of each about itself.

The same rows and the same version make the same bytes, whoever predicts them, so doing a shard twice is doing it once.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from meguri_contracts.errors import Invalid
from meguri_contracts.events import BatchCompleted, BatchRequested, Deployed, ShardPlanned
from meguri_inference import scoring
from meguri_inference.formats import PIECE_ROWS
from meguri_inference.pieces import features
from meguri_inference.predicting import LoadedModel

MAX_SHARDS = 10_000
CLAIM = "_batch.json"
"""File in the folder of a batch that says whose folder it is. Readers of Parquet folders pass over names that begin so."""
_OPTIONS: Mapping[str, Any] = {"compression": "zstd", "compression_level": 3, "version": "2.6"}
_READ_BYTES = 1024 * 1024


class TooManyShards(Invalid):
    def __init__(self, rows: int, shards: int) -> None:
        super().__init__(f"{rows} rows would make {shards} shards, at most {MAX_SHARDS} are made: raise shard_rows")


class NotWritable(Invalid):
    def __init__(self, error: Exception) -> None:
        super().__init__(f"the input has a column that cannot be written as Parquet: {error}")


@dataclass(frozen=True)
class Manifest:
    """What is known of a shard that is done: the rows in its file, and the SHA-256 of this."""

    shard: int
    rows: int
    file: str
    digest: str

    def write(self) -> bytes:
        return _canonical(asdict(self))

    @classmethod
    def read(cls, text: bytes) -> Self:
        return cls(**json.loads(text))


def plan(
    requested: BatchRequested, deployed: Deployed, *, rows: int, input_digest: str, output: str
) -> list[ShardPlanned]:
    """Return the shards of a batch; one, when there are no rows. Raises TooManyShards."""
    size = requested.shard_rows
    shards = max(1, -(-rows // size))
    if shards > MAX_SHARDS:
        raise TooManyShards(rows, shards)
    return [
        ShardPlanned(
            model=requested.model,
            batch=requested.batch,
            shard=shard,
            shards=shards,
            first=shard * size,
            rows=min(size, rows - shard * size),
            input=requested.input,
            input_digest=input_digest,
            output=output,
            deployed=deployed,
        )
        for shard in range(shards)
    ]


def claim(planned: Sequence[ShardPlanned]) -> bytes:
    """Return what stands in a folder about the batch that it belongs to."""
    one = planned[0]
    return _canonical(
        {
            "batch": one.batch,
            "model": one.model,
            "version": one.deployed.version,
            "run": one.deployed.run,
            "input": one.input,
            "input_digest": one.input_digest,
            "shards": one.shards,
            "rows": sum(shard.rows for shard in planned),
        }
    )


def manifest_name(shard: int) -> str:
    return f"_shard-{shard:05d}.json"


def file_name(shard: int) -> str:
    return f"part-{shard:05d}.parquet"


def predicted(model: LoadedModel, table: pa.Table, first: int) -> pa.Table:
    """Return rows with their numbers, the columns that they came with, the model's answers, and its version.

    A column that came with the name of one of ours is called `input_…`.
    """
    answers = scoring.columns(model, scoring.answers(model, features(table, model.signature, first=first)))
    return _beside(table, answers, first, model.version)


def write(path: Path, tables: Iterator[pa.Table], empty: pa.Table) -> Iterator[int]:
    """Write tables into a Parquet file, one row group each; yields the rows of each as it is written. Raises NotWritable."""
    head = next(tables, empty)
    try:
        with pq.ParquetWriter(path, head.schema, **_OPTIONS) as writer:
            for table in chain((head,), tables):
                writer.write_table(table, row_group_size=PIECE_ROWS)
                yield table.num_rows
    except pa.ArrowException as error:
        raise NotWritable(error) from error


def nothing(model: LoadedModel) -> pa.Table:
    """The table of a shard without rows."""
    return _beside(pa.table({}), scoring.no_columns(model), 0, model.version)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def completed(shard: ShardPlanned, manifests: Sequence[Manifest]) -> BatchCompleted:
    """Return what is said of a batch when all its shards are done; `manifests` are in their order."""
    return BatchCompleted(
        model=shard.model,
        batch=shard.batch,
        version=shard.deployed.version,
        run=shard.deployed.run,
        input=shard.input,
        input_digest=shard.input_digest,
        output=shard.output,
        rows=sum(manifest.rows for manifest in manifests),
        shards=shard.shards,
        digest=hashlib.sha256("\n".join(manifest.digest for manifest in manifests).encode()).hexdigest(),
    )


def _beside(table: pa.Table, answers: Mapping[str, pa.Array], first: int, version: int) -> pa.Table:
    rows = len(next(iter(answers.values())))
    ours = {
        "row": pa.array(np.arange(first, first + rows)),
        **answers,
        "model_version": pa.repeat(pa.scalar(version, pa.int64()), rows),
    }
    given = dict(zip(_renamed(table.column_names, set(ours)), table.columns, strict=True))
    return pa.table({"row": ours.pop("row"), **given, **ours})


def _renamed(names: Sequence[str], ours: set[str]) -> list[str]:
    taken, found = ours | set(names), []
    for name in names:
        new = name
        while new in ours or (new != name and new in taken):
            new = f"input_{new}"
        taken.add(new)
        found.append(new)
    return found


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
