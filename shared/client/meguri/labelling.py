"""Labels, the truth about predictions: from a file or a program into the log."""

import asyncio
import csv
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import typer
from pydantic import ValidationError

from meguri import client as sdk
from meguri import show
from meguri.answering import Json, answer, complain, fail, give
from meguri.client import Meguri, MeguriClientError, Unreachable
from meguri_contracts.events import Label, LabelsArrived
from meguri_contracts.names import is_name
from meguri_contracts.topology import MAX_INLINE_BYTES

EVENT_BYTES = MAX_INLINE_BYTES // 2
"""Of labels in an event at most."""
COLUMNS = ("prediction_id", "entity", "time", "label")
"""That are read; others are left out."""


class NoLabels(MeguriClientError):
    """A file or its name is not what labels are read from."""


def add_to(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command()(answer(labels))


def labels(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    file: Annotated[
        Path,
        typer.Argument(help="CSV with prediction_id (or entity and perhaps time) and label, or JSON Lines likewise."),
    ],
    producer: Annotated[str, typer.Option(help="Who sends this.")] = "cli",
    id: Annotated[str | None, typer.Option(help="Id of the event; sent twice, it has its effect once.")] = None,
    as_json: Json = False,
) -> None:
    """Say what should have been predicted. Of several labels of a prediction the latest stands.

    A label of an entity is of the last answer about it up to its time, ISO 8601 with a zone; without one, up to now.
    """
    if not is_name(model):
        fail(f"{model!r} is no name of a model")
    # Read whole before anything is sent: a file with a mistake in it changes nothing.
    if not (found := list(read(file))):
        fail(f"{file}: there are no labels in it")
    _require_known(model)
    try:
        events = asyncio.run(publish_labels(model, found, producer=producer, id=id))
    except MeguriClientError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever the broker's client raises, the user needs one line
        fail(f"the broker at {sdk.broker()} did not take the labels: {error or type(error).__name__}")
    give(as_json, {"model": model, "labels": len(found), "events": events}, show.labelled)


def _require_known(model: str) -> None:
    """Raise Refused for a model that the registry does not know: labels of it would wait for ever, and nobody would say so."""
    try:
        with Meguri() as meguri:
            meguri.model(model)
    except Unreachable as error:
        # Labels need the broker only.
        complain(f"whether there is a model {model!r} could not be asked: {error}")


async def publish_labels(model: str, labels: Iterable[Label], *, producer: str, id: str | None = None) -> list[str]:
    """Publish labels on the log, in as many events as they need, and return the events' ids, once they are on disk.

    The first has the `id`, the others `<id>-1`, `<id>-2`, … Raises LogFull, and NoLabels for one that is NaN.
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
        except UnicodeDecodeError as error:
            raise NoLabels(f"{file}: this is no text in UTF-8: {error}") from error
        except csv.Error as error:
            raise NoLabels(f"{file}: {error}") from error


def _rows_of_csv(file: Path, text: Iterable[str]) -> Iterator[Label]:
    rows = csv.DictReader(text)
    columns = set(rows.fieldnames or ())
    if "label" not in columns or not columns & {"prediction_id", "entity"}:
        missing = "label" if "label" not in columns else "prediction_id"
        raise NoLabels(f"{file}: no column {missing!r}; needed are label, and prediction_id or entity")
    for row in rows:
        # In a file of both kinds, what a row does not have is empty.
        given = {name: row[name] for name in COLUMNS if name in columns and (row[name] or name == "label")}
        place = f"{file}, line {rows.line_num}"
        if not given["label"]:
            raise NoLabels(f"{place}: label: it is empty")
        with _said_of(place):
            label = Label.model_validate(given)
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
        reason = first["msg"].removeprefix("Value error, ")
        raise NoLabels(f"{place}: {where + ': ' if where else ''}{reason}") from error


def _bodies(labels: Iterable[Label]) -> Iterator[bytes]:
    part: list[bytes] = []
    size = 0
    for label in labels:
        if isinstance(label.label, float) and math.isnan(label.label):
            raise NoLabels(f"the label of {label.prediction_id or label.entity} is NaN: leave out what is not known")
        one = label.model_dump_json(exclude_none=True).encode()
        if part and size + len(one) > EVENT_BYTES:
            yield _body(part)
            part, size = [], 0
        part.append(one)
        size += len(one) + 1
    if part:
        yield _body(part)


def _body(labels: list[bytes]) -> bytes:
    return b'{"labels":[' + b",".join(labels) + b"]}"
