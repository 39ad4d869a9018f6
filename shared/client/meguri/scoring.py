"""Commands for many rows at once: predict a file, compare two versions on what was recorded."""

import asyncio
import sys
from contextlib import aclosing
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from meguri import following, show_scoring
from meguri.answering import Json, answer, give
from meguri.client import Meguri, MeguriClientError
from meguri_contracts.events import BatchCompleted, BatchFailed, ShardScored

Model = Annotated[str, typer.Argument(help="Name of the model.")]


def add_to(app: typer.Typer) -> None:
    """Add these commands to an application."""
    for command in (batch, batches, compare):
        app.command()(answer(command))


def batch(
    model: Model,
    rows: Annotated[str, typer.Option("--in", help="The rows: a file or a URI that inference may read.")],
    folder: Annotated[str, typer.Option("--out", help="Folder or URI for the predictions, Parquet files.")],
    version: Annotated[int | None, typer.Option(min=1, help="Who predicts; else the champion of the moment.")] = None,
    shard_rows: Annotated[int, typer.Option(min=1, help="Rows that are predicted at a time.")] = 100_000,
    key: Annotated[str | None, typer.Option(help="Name of the batch; used again, it is the same batch.")] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it has ended.")] = True,
    as_json: Json = False,
) -> None:
    """Predict all rows of a file. Replicas share the work; whoever dies over it, the result is the same.

    Exit code 1 when the batch failed.
    """
    with Meguri() as meguri:
        asked = meguri.batch(
            model, input=_uri(rows), output=_uri(folder), version=version, shard_rows=shard_rows, key=key
        )
        if not wait:
            give(as_json, asked, show_scoring.requested)
            return
        meguri.has_seen(asyncio.run(_ended(model, asked["batch"], asked["sequence"], quiet=as_json)))
        known = meguri.batch_known(asked["batch"], model)
    give(as_json, known, show_scoring.batch)
    if known["status"] == "failed":
        raise typer.Exit(1)


def batches(
    batch: Annotated[str | None, typer.Argument(help="One batch in detail.")] = None,
    model: Annotated[str | None, typer.Option(help="Of one model only.")] = None,
    as_json: Json = False,
) -> None:
    """The latest batches, or one with its version, run, digests and parts."""
    with Meguri() as meguri:
        if batch is None:
            give(as_json, meguri.batches(model), show_scoring.batches)
        else:
            give(as_json, meguri.batch_known(batch, model), show_scoring.batch)


def compare(
    model: Model,
    a: Annotated[int, typer.Argument(min=1, help="A version.")],
    b: Annotated[int, typer.Argument(min=1, help="Another one.")],
    last: Annotated[int, typer.Option(min=1, help="Of the recorded rows the latest so many.")] = 10_000,
    as_json: Json = False,
) -> None:
    """Have two versions predict what was asked of the model lately: how often they disagree, by how much, and for whom."""
    with Meguri() as meguri:
        give(as_json, meguri.compare(model, a, b, meguri.recorded(model, last)), show_scoring.comparison)


async def _ended(model: str, batch: str, after: int, *, quiet: bool) -> int:
    """Follow the log until the outcome of a batch is said; return its sequence."""
    done: set[int] = set()
    async with aclosing(following.follow("*", model, after=after)) as found:
        async for seen in found:
            if seen.event.get("batch") != batch:
                continue
            if seen.kind in (BatchCompleted.kind(), BatchFailed.kind()):
                return seen.sequence
            if seen.kind == ShardScored.kind() and not quiet:
                done.add(seen.event["shard"])
                _progress(f"{len(done)} of {seen.event['shards']} shards")
    raise MeguriClientError("the log ended")


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text}\x1b[K", end="", file=sys.stderr, flush=True)  # noqa: T201


def _uri(place: str) -> str:
    """A URI as it is; a path of this machine as one."""
    return place if urlsplit(place).scheme else Path(place).absolute().as_uri()
