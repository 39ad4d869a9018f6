"""Questions to the log itself, for who keeps no tables: what was said about a key, and what was last."""

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import RawStreamMsg
from nats.js.errors import APIError, NotFoundError

from meguri_chassis.log import LogUnavailable, Message
from meguri_contracts.errors import PermanentError
from meguri_contracts.events import Event
from meguri_contracts.topology import LOG, key_subjects, subject

E = TypeVar("E", bound=Event)


class Lookup:
    """Asks the log for events, one request each: for the few of one kind and key."""

    def __init__(self, js: Callable[[], JetStreamContext]) -> None:
        self._js = js

    async def said(self, kind: type[E], key: str, *, after: int = 0) -> AsyncGenerator[tuple[int, E], None]:
        """Yield the events of a kind and key after a sequence, up to the present, each with its own; in log order.

        What cannot be read is passed over. Raises LogUnavailable.
        """
        while found := await self._next(subject(kind.kind(), key), after):
            after = found.sequence
            try:
                event = found.event
            except PermanentError:
                continue
            assert isinstance(event, kind)
            yield after, event

    async def head(self, key: str) -> int:
        """Return the sequence of the last event of a key, 0 if there is none. Raises LogUnavailable."""
        with _asking():
            try:
                return int((await self._js().get_last_msg(LOG, key_subjects(key))).seq or 0)
            except NotFoundError:
                return 0

    async def _next(self, subject: str, after: int) -> Message | None:
        with _asking():
            try:
                return _message(await self._js().get_msg(LOG, after + 1, subject=subject, next=True))
            except NotFoundError:
                return None


def _message(found: RawStreamMsg) -> Message:
    assert found.subject is not None
    assert found.seq is not None
    assert found.time is not None
    return Message.of(found.subject, found.headers or {}, found.data or b"", found.seq, found.time)


@contextmanager
def _asking() -> Iterator[None]:
    try:
        yield
    except NotFoundError:
        raise
    except (NatsError, APIError, OSError, TimeoutError) as error:
        raise LogUnavailable(f"the log does not answer: {error!r}") from error
