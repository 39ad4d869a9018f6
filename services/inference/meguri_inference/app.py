"""Inference: serves the champion of every model over the Open Inference Protocol, and follows the registry's rollouts."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from meguri_chassis.artifacts import Artifacts
from meguri_chassis.service import Service
from meguri_contracts.events import RolloutChanged
from meguri_contracts.topology import LOG, subject
from meguri_inference import api, metrics
from meguri_inference.fast_path import FastPath
from meguri_inference.models import Models
from meguri_inference.prediction_log import PredictionLog
from meguri_inference.rollouts import PredictionsOut, Rollouts
from meguri_inference.settings import Settings
from meguri_inference.tracing import Origins, Tracing


def build(settings: Settings | None = None) -> Service:
    settings = settings or Settings()
    service = Service(settings, description=__doc__ or "")
    models, origins = Models(), Origins()
    reader = service.reader(LOG, [subject(RolloutChanged.kind(), "*")], "inference-rollouts")
    rollouts = Rollouts(
        reader=reader,
        log=service.log,
        artifacts=Artifacts(settings.artifacts_url),
        models=models,
        origins=origins,
        replica=settings.replica,
        continue_trace_max_age=settings.continue_trace_max_age,
    )
    predictions = PredictionLog(PredictionsOut(reader).publish, linger=settings.linger)

    @asynccontextmanager
    async def nothing_left_unsaid() -> AsyncIterator[None]:
        yield
        await predictions.close()

    service.follow(reader, rollouts.run)
    service.reasons.append(rollouts.loading)
    service.warnings.append(rollouts.failed)
    service.before_goodbye(nothing_left_unsaid)
    service.app.include_router(api.routes(service, models))
    service.stands_before(
        FastPath(
            service.app,
            models,
            predictions,
            trace=Tracing(origins, settings.sampling),
            observe=metrics.observe,
            max_body_bytes=settings.max_body_bytes,
            max_rows=settings.max_rows,
        )
    )
    return service
