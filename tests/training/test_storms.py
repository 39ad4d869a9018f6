"""Many arrivals at once: few fits, and each arrival's fate can be told."""

import asyncio
import json
from typing import Any

from meguri_contracts.events import DataCommitted, ModelTrained, TrainingStarted
from meguri_contracts.topology import LOG, subject
from meguri_ingest import app as ingest
from meguri_ingest.settings import Settings as IngestSettings
from meguri_registry import app as registry
from meguri_registry.settings import Settings as RegistrySettings
from tests.conftest import until
from tests.services import name, running
from tests.training.flowers import FLOWERS, Training, spec

ARRIVALS = 500


async def publish_all(training: Training, dataset: str) -> list[str]:
    rows = FLOWERS.sample(fraction=1.0, shuffle=True, seed=1).to_dicts()
    ids = [f"{dataset}-{number}" for number in range(ARRIVALS)]

    async def publish(number: int) -> None:
        body = json.dumps({"records": [rows[number % len(rows)]]}).encode()
        headers = {"Nats-Msg-Id": ids[number], "ce-id": ids[number], "ce-source": "lab"}
        await training.wire.js.publish(subject("data-arrived", dataset), body, stream=LOG, headers=headers)

    await asyncio.gather(*map(publish, range(ARRIVALS)))
    return ids


async def all_committed(training: Training, dataset: str) -> dict[str, int]:
    """The dataset version of each arrival."""

    async def committed() -> dict[str, int] | None:
        said = await training.wire.said(DataCommitted, dataset)
        versions = {part.event: one.version for one in said for part in one.events}
        return versions if len(versions) == ARRIVALS else None

    return await until(committed, "the commit of every arrival")


async def test_five_hundred_arrivals_at_once_make_a_handful_of_fits_and_none_is_unaccounted_for(training, broker):
    model, folder = name("flowers"), training.folder
    common: dict[str, Any] = {"nats_url": broker.url, "var": folder}
    taking = ingest.build(IngestSettings(database_url=f"sqlite:///{folder}/ingest.db", **common))
    judging = registry.build(RegistrySettings(database_url=f"sqlite:///{folder}/registry.db", **common))
    async with running(taking), running(judging):
        await training.wire.apply(spec(model, retrain={"first_rows": 150}))
        ids = await publish_all(training, model)
        versions = await all_committed(training, model)

        async def rests() -> dict[str, Any] | None:
            state = await training.state(model)
            return state if state["running"] is None and state["new_rows"] == 0 else None

        await until(rests, "the rest of the model")
        runs = await training.said(TrainingStarted, model)
        trained = await training.said(ModelTrained, model)
        # How far arrivals come apart is the machine's; each by itself would be five hundred.
        assert len(trained) == len(runs) <= 10, [run.dataset_rows for run in runs]
        assert runs[-1].dataset_rows == ARRIVALS
        version_of = {run.run: run.dataset_version for run in runs}
        for version in {versions[id_] for id_ in ids}:
            (use,) = (await training.http.get(f"/datasets/{model}/versions/{version}")).json()
            assert version_of[use["run"]] >= version
            assert use["waits_for"] is None
