"""Training: decides from the spec's triggers when a model is due, and fits it on the exact dataset version, once."""

from pathlib import Path

from meguri_chassis.artifacts import Artifacts
from meguri_chassis.bus import Hearing
from meguri_chassis.deciding import Decider
from meguri_chassis.processes import Home
from meguri_chassis.projection import Projection
from meguri_chassis.service import Service
from meguri_chassis.store import Database
from meguri_contracts.topology import TRAINING_FITS, TRAINING_TRIGGERS
from meguri_training import api, handlers, projection, store
from meguri_training.settings import Settings
from meguri_training.workers import Workers

MIGRATIONS = Path(__file__).parent / "migrations"


def build(settings: Settings | None = None) -> Service:
    settings = settings or Settings()
    database = Database(settings.database_url, MIGRATIONS)
    tables = Projection(database, projection.evolve, projection.HEARS, store.TABLES)
    workers = Workers(Home.of(settings))
    service = Service(settings, description=__doc__ or "", database=database, projection=tables)
    decider = Decider(service.log, database, tables)
    fitter = handlers.Fitter(
        decider=decider,
        database=database,
        projection=tables,
        artifacts=Artifacts(settings.artifacts_url),
        workers=workers,
        data_url=settings.data_url,
        tries=settings.fit_tries,
    )
    service.during(workers.open)
    starter = handlers.Starter(decider, settings.max_hops)
    # Some of them wait for a moment; the others need not wait for them.
    service.hear(Hearing(TRAINING_TRIGGERS, [starter.look_at_model, starter.look_at_models_on], together=64))
    service.hear(Hearing(TRAINING_FITS, [fitter.fit]))
    service.app.include_router(api.routes(service))
    return service
