"""What tests of a running registry share."""

from collections.abc import AsyncIterator

import pytest

from tests.registry.registering import Registry, registering, spec


@pytest.fixture
async def registry(broker, database_url, tmp_path) -> AsyncIterator[Registry]:
    async with registering(broker, database_url, tmp_path) as registry:
        yield registry


@pytest.fixture
async def known(broker, tmp_path) -> AsyncIterator[Registry]:
    """A registry that knows the model, where the kind of database makes no difference."""
    async with registering(broker, f"sqlite:///{tmp_path}/registry.db", tmp_path) as registry:
        assert (await registry.apply(spec(registry.model))).status_code == 200
        yield registry
