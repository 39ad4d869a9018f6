"""What tests of ingest share: a running one that knows a dataset."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.conftest import Broker
from tests.ingest.upstream import Ingest, ingesting, spec
from tests.services import name


@pytest.fixture
async def ingest(broker: Broker, tmp_path: Path) -> AsyncIterator[Ingest]:
    dataset = name("d")
    async with ingesting(broker, f"sqlite:///{tmp_path}/ingest.db", tmp_path, dataset) as ingest:
        await ingest.wire.apply(spec(dataset))
        yield ingest
