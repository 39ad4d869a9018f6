"""Inference: answers predictions by the traffic plan of every model, over the Open Inference Protocol."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from meguri_chassis.artifacts import Artifacts
from meguri_chassis.bus import Hearing
from meguri_chassis.lookup import Lookup
from meguri_chassis.service import Service
from meguri_contracts.events import RolloutChanged, SpecApplied
from meguri_contracts.topology import INFERENCE_BATCHES, LOG, subject
from meguri_inference import api, scoring_api
from meguri_inference.answering import Answering, Limits
from meguri_inference.connection import speaking
from meguri_inference.fast_path import FastPath
from meguri_inference.handlers import Batches
from meguri_inference.metrics import Metrics, own_port
from meguri_inference.models import Models
from meguri_inference.observing import Observer
from meguri_inference.prediction_ids import PredictionIds
from meguri_inference.prediction_log import PredictionLog
from meguri_inference.replying import Replying
from meguri_inference.rollouts import Loader, PredictionsOut, Reports, Rollouts
from meguri_inference.settings import Settings
from meguri_inference.shadowing import Shadowing
from meguri_inference.storing import Inputs, Outputs
from meguri_inference.tallies import Tallies
from meguri_inference.tracing import Origins, Tracing
from meguri_inference.versions import Versions


def build(settings: Settings | None = None) -> Service:
    settings = settings or Settings()
    service = Service(settings, description=__doc__ or "")
    origins, tallies, ids = Origins(), Tallies(), PredictionIds()
    followed = [subject(kind.kind(), "*") for kind in (SpecApplied, RolloutChanged)]
    reader = service.reader(LOG, followed, "inference-rollouts")
    log = PredictionLog(PredictionsOut(reader).publish, ids, linger=settings.linger)
    artifacts = Artifacts(settings.artifacts_url)
    models = Models(Loader(artifacts), max_bytes=settings.max_model_bytes)
    shadowing = Shadowing(log)
    answering = Answering(
        models,
        log,
        ids,
        tallies,
        shadowing,
        trace=Tracing(origins, settings.sampling),
        limits=Limits(settings.max_body_bytes, settings.max_rows, settings.max_waiting),
    )
    observer = Observer(Reports(service.log).say, settings.replica)
    rollouts = Rollouts(
        reader=reader,
        log=service.log,
        models=models,
        tallies=tallies,
        observer=observer,
        origins=origins,
        replica=settings.replica,
        continue_trace_max_age=settings.continue_trace_max_age,
    )

    @asynccontextmanager
    async def nothing_left_unsaid() -> AsyncIterator[None]:
        yield
        await observer.close()
        await shadowing.close()
        await log.close()

    if settings.metrics_port is not None:
        service.during(partial(own_port, settings.host, settings.metrics_port, service.metrics))
    replying = Replying(service.client, answering, loading=rollouts.loading)

    @asynccontextmanager
    async def no_request_unanswered() -> AsyncIterator[None]:
        yield
        await replying.close()

    service.follow(reader, rollouts.run)
    service.once_connected(replying.run)
    service.reasons.append(rollouts.loading)
    service.warnings.append(rollouts.failed)
    service.before_goodbye(nothing_left_unsaid)
    service.before_goodbye(no_request_unanswered)
    service.measures(Metrics(tallies, log))
    service.app.include_router(api.routes(service, answering))
    service.stands_before(FastPath(service.app, answering))
    service.speaks(speaking(answering), shared_port=settings.shared_port)
    _add_batches(service, settings, artifacts)
    return service


def _add_batches(service: Service, settings: Settings, artifacts: Artifacts) -> None:
    """Have the service predict files, and compare versions."""
    lookup = Lookup(service.jetstream)
    versions = Versions(lookup, artifacts)
    inputs, outputs = Inputs(settings.batch_inputs.split(",")), Outputs(settings.batch_outputs.split(","))
    batches = Batches(
        log=service.log,
        lookup=lookup,
        versions=versions,
        inputs=inputs,
        outputs=outputs,
        replica=settings.replica,
    )
    service.hear(Hearing(INFERENCE_BATCHES, [batches.plan, batches.score]))
    service.app.include_router(
        scoring_api.routes(service.log, lookup, versions, inputs, outputs, settings.max_compared_bytes)
    )
