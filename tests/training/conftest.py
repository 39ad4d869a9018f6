from collections.abc import AsyncIterator

import pytest

from meguri_chassis.artifacts import Artifacts
from meguri_training.app import build
from meguri_training.settings import Settings
from tests.services import running, wire
from tests.training.flowers import Training


@pytest.fixture
async def training(broker, tmp_path) -> AsyncIterator[Training]:
    settings = Settings(nats_url=broker.url, database_url=f"sqlite:///{tmp_path}/training.db", var=tmp_path)
    async with running(build(settings)) as http, wire(broker) as beside:
        yield Training(http, beside, Artifacts(settings.artifacts_url), tmp_path)
