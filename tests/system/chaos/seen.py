"""All that can be seen after a run: the log, the dead letters, the predictions, the tables."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import polars as pl
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig

from meguri_chassis.log import Message
from meguri_contracts.errors import MeguriError
from meguri_contracts.events import Event
from meguri_contracts.topology import DEAD, LOG, PREDICTIONS
from meguri_monitoring.predictions import predictions
from tests.system.chaos import specs

E = TypeVar("E", bound=Event)


@dataclass(frozen=True)
class DeadLetter:
    consumer: str
    event: str
    reason: str


@dataclass(frozen=True)
class Seen:
    """What a run left behind."""

    messages: list[Message]
    dead: list[DeadLetter]
    predicted: list[str]
    """Ids of the predictions that were published, a row each."""
    data: Path
    """Where the tables are."""

    @classmethod
    async def after(cls, client: Client, data: Path) -> "Seen":
        log = [Message.read(msg) for msg in await _whole(client, LOG)]
        dead = [_letter(msg) for msg in await _whole(client, DEAD)]
        predicted = [id_ for msg in await _whole(client, PREDICTIONS) for id_ in _ids(msg.data)]
        return cls(log, dead, predicted, data)

    def said(self, *kinds: type[E]) -> Iterator[tuple[Message, E]]:
        """Every event of these kinds, in log order; what cannot be read is none."""
        wanted = {kind.kind() for kind in kinds}
        for message in self.messages:
            if message.kind in wanted:
                try:
                    yield message, message.event  # type: ignore[misc]
                except MeguriError:
                    continue

    @cached_property
    def rows(self) -> dict[str, pl.DataFrame]:
        """The last version of every dataset's table."""
        tables = {dataset: self.data / dataset for dataset in specs.DATASETS}
        return {dataset: pl.read_delta(str(table)) for dataset, table in tables.items() if table.exists()}

    @cached_property
    def kept_predictions(self) -> list[str]:
        """Ids of the predictions in the tables of monitoring, a row each."""
        tables = sorted(path.parent for path in self.data.glob("_predictions/*/*/_delta_log"))
        return [id_ for table in tables for id_ in pl.read_delta(str(table))["prediction_id"]]


async def _whole(client: Client, stream: str) -> list[Msg]:
    """Every message of a stream, in its order."""
    js = client.jetstream(timeout=10)
    left = (await js.stream_info(stream)).state.messages
    config = ConsumerConfig(ack_policy=AckPolicy.NONE, mem_storage=True, inactive_threshold=30)
    reading = await js.pull_subscribe(">", stream=stream, config=config)
    found: list[Msg] = []
    while len(found) < left:
        found += await reading.fetch(min(500, left - len(found)), timeout=20)
    await reading.unsubscribe()
    return found


def _letter(msg: Msg) -> DeadLetter:
    headers = msg.headers or {}
    return DeadLetter(headers["meguri-consumer"], headers["meguri-event"], headers["meguri-reason"])


def _ids(body: bytes) -> list[str]:
    return [id_ for batch in predictions.read(body, 0) for id_ in batch.frame["prediction_id"]]
