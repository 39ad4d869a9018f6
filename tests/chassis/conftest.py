"""What the tests of the chassis share: the wire to the broker that all tests share."""

from collections.abc import AsyncIterator

import pytest
from nats.js import JetStreamContext

from tests.conftest import Broker
from tests.services import Wire
from tests.services import wire as wired


@pytest.fixture
async def wire(broker: Broker) -> AsyncIterator[Wire]:
    async with wired(broker) as wire:
        yield wire


@pytest.fixture
def js(wire: Wire) -> JetStreamContext:
    return wire.js
