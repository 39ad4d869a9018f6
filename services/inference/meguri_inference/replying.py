"""Predictions by request and reply over NATS: `meguri.infer.<model>` takes the bodies of V2, and one replica answers."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import orjson

from meguri_contracts.errors import MeguriError
from meguri_contracts.topology import INFER_PREFIX
from meguri_inference import binary
from meguri_inference.answering import Answering, Reply
from meguri_inference.compression import inflate
from meguri_inference.heads import Headers, head_for

logger = logging.getLogger(__name__)

STATUS = "Meguri-Status"
"""Header of each reply with what would be the HTTP status. A header named only Status is the broker's."""
QUEUE = "inference"
"""Group of which one member gets each request."""
MAX_IN_HAND = 4096
"""Requests that are worked on at once. Who comes when there are as many is told to come again, with status 503."""
MAX_BYTES_IN_HAND = 64 * 1024 * 1024
"""The same for the bytes of their bodies."""
PAUSE = 0.05
"""Seconds between looks whether the models that were rolled out before us are loaded."""
_HEAD_BYTES = 1024
"""More than the headers of a reply take."""


class Message(Protocol):
    """A message of the broker's client."""

    subject: str
    reply: str
    data: bytes
    headers: Mapping[str, str] | None


class Client(Protocol):
    """What is needed of the broker's client."""

    @property
    def max_payload(self) -> int: ...

    async def subscribe(
        self, subject: str, *, queue: str, cb: Callable[[Any], Awaitable[None]], pending_bytes_limit: int
    ) -> Any: ...

    async def publish(self, subject: str, payload: bytes, *, headers: dict[str, str]) -> None: ...


class Replying:
    """Answers requests from `run` on until `close`."""

    def __init__(
        self, client: Callable[[], Client], answering: Answering, *, loading: Callable[[], str | None]
    ) -> None:
        self._client = client
        self._answering = answering
        self._loading = loading
        self._subscription: Any = None
        self._in_hand: set[asyncio.Task[None]] = set()
        self._bytes = 0

    async def run(self) -> None:
        """Begin to answer, once what was rolled out before is loaded: another replica may have it already."""
        while self._loading():  # noqa: ASYNC110 - it says so in words for an operator, and only at the start
            await asyncio.sleep(PAUSE)
        self._subscription = await self._client().subscribe(
            f"{INFER_PREFIX}.*", queue=QUEUE, cb=self._take, pending_bytes_limit=MAX_BYTES_IN_HAND
        )

    async def close(self, patience: float = 5.0) -> None:
        """Leave new requests to the other replicas and answer those in hand, within `patience` seconds."""
        if self._subscription is not None:
            try:
                await asyncio.wait_for(self._subscription.drain(), patience)
            except Exception as error:  # noqa: BLE001 - the broker is away, whatever its client calls it
                logger.warning("requests could not be refused at the end: %r", error)
        if self._in_hand:
            await asyncio.wait(self._in_hand, timeout=patience)

    async def _take(self, message: Message) -> None:
        if not message.reply:
            return  # nobody waits for an answer
        if len(self._in_hand) >= MAX_IN_HAND or self._bytes + len(message.data) > MAX_BYTES_IN_HAND:
            reason = f"{len(self._in_hand)} requests with {self._bytes} bytes are in hand; try again later"
            await self._refuse(message, 503, reason)
            return
        self._bytes += len(message.data)
        task = asyncio.create_task(self._reply(message))
        self._in_hand.add(task)
        task.add_done_callback(lambda done: self._leave(done, len(message.data)))

    def _leave(self, task: asyncio.Task[None], size: int) -> None:
        self._in_hand.discard(task)
        self._bytes -= size
        if not task.cancelled() and (error := task.exception()):
            logger.error("a request over NATS was not answered", exc_info=error)

    async def _reply(self, message: Message) -> None:
        try:
            head = head_for(message.subject.removeprefix(f"{INFER_PREFIX}."), _read_headers(message))
            body = message.data
            if head.encoding:
                body = await asyncio.to_thread(inflate, body, head.encoding, self._answering.limits.max_body_bytes)
            reply = await self._answering.answer(head, body)
        except MeguriError as error:
            reply = self._answering.refusal(error)
        await self._answer(message, reply)

    async def _answer(self, message: Message, reply: Reply) -> None:
        if len(reply.body) + _HEAD_BYTES > (limit := self._client().max_payload):
            reason = f"the answer has {len(reply.body)} bytes, the broker takes {limit}; ask for fewer rows or outputs"
            await self._refuse(message, 413, reason)
            return
        headers = {STATUS: str(reply.status)}
        if reply.header_length is not None:
            headers[binary.HEADER.title()] = str(reply.header_length)
        await self._client().publish(message.reply, reply.body, headers=headers)

    async def _refuse(self, message: Message, code: int, reason: str) -> None:
        await self._client().publish(message.reply, orjson.dumps({"error": reason}), headers={STATUS: str(code)})


def _read_headers(message: Message) -> Headers:
    return [
        (name.lower().encode(errors="replace"), value.encode(errors="replace"))
        for name, value in (message.headers or {}).items()
    ]
