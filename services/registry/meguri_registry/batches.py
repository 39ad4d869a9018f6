"""What is known of batches: from the request to the outcome, and what their predictions were made from."""

from typing import Any

from sqlmodel import Session

from meguri_chassis.log import Message
from meguri_chassis.store import utc
from meguri_contracts.events import BatchCompleted, BatchFailed, BatchRequested, Event, ShardPlanned, ShardScored
from meguri_registry import batch_store
from meguri_registry.batch_store import BatchRow, BatchShardRow

HEARS = (BatchRequested, ShardPlanned, ShardScored, BatchCompleted, BatchFailed)
_ENDED = ("completed", "failed")


def evolve(session: Session, event: Event, message: Message) -> None:
    match event:
        case BatchRequested():
            _request(session, event, message)
        case ShardPlanned():
            row = session.get(BatchRow, (event.model, event.batch))
            if row and row.status == "requested":
                _change(session, row, status="running", input_digest=event.input_digest, shards=event.shards)
                _change(session, row, version=event.deployed.version, run=event.deployed.run)
        case ShardScored():
            part = event.model_dump(exclude={"shards"})
            session.merge(BatchShardRow(**part))
        case BatchCompleted():
            known = event.model_dump(include={"version", "run", "input_digest", "rows", "shards", "digest"})
            _end(session, event.model, event.batch, status="completed", **known)
        case BatchFailed():
            _end(session, event.model, event.batch, status="failed", reason=event.reason)


def summary(row: BatchRow) -> dict[str, Any]:
    """Return a batch as it is listed."""
    return row.model_dump(mode="json") | {"time": utc(row.time).isoformat()}


def detail(session: Session, row: BatchRow) -> dict[str, Any]:
    """Return a batch with its parts."""
    done = batch_store.shards(session, row)
    return summary(row) | {
        "shards_done": len(done),
        "rows_done": sum(part.rows for part in done),
        "parts": [part.model_dump(mode="json", exclude={"model", "batch"}) for part in done],
    }


def _request(session: Session, event: BatchRequested, message: Message) -> None:
    asked = event.model_dump(include={"model", "batch", "actor", "input", "output"})
    row = BatchRow(
        **asked, status="requested", asked_version=event.version, requested=message.sequence, time=message.time
    )
    # Asked for again, it begins again: what was done is found done.
    session.merge(row)


def _end(session: Session, model: str, batch: str, **changes: object) -> None:
    row = session.get(BatchRow, (model, batch))
    if row and row.status not in _ENDED:
        _change(session, row, **changes)


def _change(session: Session, row: BatchRow, **changes: object) -> None:
    for name, value in changes.items():
        setattr(row, name, value)
    session.add(row)
