"""Labels, the truth about predictions: from a file or a program into the log."""

import asyncio
import csv
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import typer
from pydantic import ValidationError

from meguri import client as sdk
from meguri import show
from meguri.answering import Json, answer, fail, give
from meguri.client import MeguriClientError
from meguri_contracts.events import Label, LabelsArrived
from meguri_contracts.names import is_name
from meguri_contracts.topology import MAX_INLINE_BYTES

EVENT_BYTES = MAX_INLINE_BYTES // 2
"""Of labels in an event at most."""


class NoLabels(MeguriClientError):
    """A file or its name is not what labels are read from."""


def add_to(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command()(answer(labels))


def labels(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    file: Annotated[Path, typer.Argument(help="CSV with prediction_id and label, or JSON Lines with these fields.")],
    producer: Annotated[str, typer.Option(help="Who sends this.")] = "cli",
    id: Annotated[str | None, typer.Option(help="Id of the event; sent twice, it has its effect once.")] = None,
    as_json: Json = False,
) -> None:
    """Say what should have been predicted. Of several labels of a prediction the latest stands."""
    if not is_name(model):
        fail(f"{model!r} is no name of a model")
    # Read whole before anything is sent: a file with a mistake in it changes nothing.
    found = list(read(file))
    try:
        events = asyncio.run(publish_labels(model, found, producer=producer, id=id))
    except MeguriClientError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever the broker's client raises, the user needs one line
        fail(f"the broker at {sdk.broker()} did not take the labels: {error or type(error).__name__}")
    give(as_json, {"model": model, "labels": len(found), "events": events}, show.labelled)


async def publish_labels(model: str, labels: Iterable[Label], *, producer: str, id: str | None = None) -> list[str]:
    """Publish labels on the log, in as many events as they need, and return the events' ids, once they are on disk.

    The first has the `id`, the others `<id>-1`, `<id>-2`, … Raises LogFull.
    """
    first = id or str(uuid4())
    sent: list[str] = []
    async with sdk.appending(producer) as append:
        for body in _bodies(labels):
            sent.append(f"{first}-{len(sent)}" if sent else first)
            await append(LabelsArrived, model, body, sent[-1])
    return sent


def read(file: Path) -> Iterator[Label]:
    """Yield the labels of a file. Raises NoLabels, naming the line."""
    readers = {".csv": _rows_of_csv, ".jsonl": _rows_of_jsonl, ".ndjson": _rows_of_jsonl}
    if file.suffix.lower() not in readers:
        raise NoLabels(f"{file}: labels are read from .csv and .jsonl")
    with file.open(encoding="utf-8-sig", newline="") as text:
        try:
            yield from readers[file.suffix.lower()](file, text)
        except (UnicodeDecodeError, csv.Error) as error:
            raise NoLabels(f"{file}: {error}") from error


def _rows_of_csv(file: Path, text: Iterable[str]) -> Iterator[Label]:
    rows = csv.DictReader(text)
    if missing := {"prediction_id", "label"} - set(rows.fieldnames or ()):
        raise NoLabels(f"{file}: no column {sorted(missing)[0]!r}; needed are prediction_id and label")
    for row in rows:
        with _said_of(f"{file}, line {rows.line_num}"):
            label = Label.model_validate(row)
        yield label


def _rows_of_jsonl(file: Path, text: Iterable[str]) -> Iterator[Label]:
    for number, line in enumerate(text, start=1):
        if line.strip():
            with _said_of(f"{file}, line {number}"):
                label = Label.model_validate_json(line)
            yield label


@contextmanager
def _said_of(place: str) -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise NoLabels(f"{place}: {where + ': ' if where else ''}{first['msg']}") from error


def _bodies(labels: Iterable[Label]) -> Iterator[bytes]:
    part: list[bytes] = []
    size = 0
    for label in labels:
        one = label.model_dump_json().encode()
        if part and size + len(one) > EVENT_BYTES:
            yield _body(part)
            part, size = [], 0
        part.append(one)
        size += len(one) + 1
    if part:
        yield _body(part)


def _body(labels: list[bytes]) -> bytes:
    return b'{"labels":[' + b",".join(labels) + b"]}"
