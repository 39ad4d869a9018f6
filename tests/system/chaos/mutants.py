"""Starts a service with one thing broken, to show that the checks see it.

python -m tests.system.chaos.mutants no-message-id ingest
"""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from nats.aio.msg import Msg

from meguri_chassis import bus, log, projection
from meguri_chassis.log import Message
from meguri_chassis.store import locked


def ack_before_effect() -> None:
    """What dies with its effect not yet said does not come again."""
    deliver = bus.Bus._deliver

    async def acknowledged_first(self: bus.Bus, hearing: bus.Hearing, msg: Msg) -> None:
        await msg.ack()
        for answer in ("ack", "ack_sync", "nak", "in_progress"):
            setattr(msg, answer, _nothing)
        await deliver(self, hearing, msg)

    bus.Bus._deliver = acknowledged_first  # type: ignore[method-assign]


def publish_without_message_id() -> None:
    """The broker cannot tell that something was said before."""
    with_id = log.ce_headers

    def without_id(*args: Any, **named: Any) -> dict[str, str]:
        return {name: value for name, value in with_id(*args, **named).items() if name != "Nats-Msg-Id"}

    log.ce_headers = without_id


def projection_without_sequence_check() -> None:
    """Every replica applies what it reads, whatever the others have applied already."""

    def apply_all_that_is_read(self: projection.Projection, batch: Sequence[Msg]) -> int:
        messages = [Message.read(msg) for msg in batch]
        with self._writer.transaction() as session:
            locked(session, projection.NAME)
            self._writer.forget()
            self._apply_all(session, messages)
        return messages[-1].sequence

    projection.Projection._apply_in_one_transaction = apply_all_that_is_read  # type: ignore[method-assign]


async def _nothing(*_: Any, **__: Any) -> None:
    """What there is left to answer after the message was acknowledged."""


MUTANTS: dict[str, tuple[Callable[[], None], frozenset[str]]] = {
    "ack-before-effect": (ack_before_effect, frozenset({"accepted and lost", "runs without one outcome"})),
    "no-message-id": (
        publish_without_message_id,
        frozenset({"dataset versions missing or doubled", "events of services said twice"}),
    ),
    "no-sequence-check": (projection_without_sequence_check, frozenset({"quiet"})),
}
"""How each is made, and the checks of which at least one must see it."""


def main(name: str, service: str) -> None:
    """Break one thing, then start the service as it is."""
    MUTANTS[name][0]()
    import_module(f"meguri_{service}.app").build().serve()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
