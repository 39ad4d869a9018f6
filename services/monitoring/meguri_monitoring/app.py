"""Monitoring: keeps every prediction, holds windows of them against the reference, tells of drift once per episode, and counts
what labels say of the versions that answer."""

from pathlib import Path

from meguri_chassis.artifacts import Artifacts
from meguri_chassis.bus import Hearing
from meguri_chassis.projection import Projection
from meguri_chassis.service import Service
from meguri_chassis.store import Database
from meguri_contracts.topology import MONITORING_LABELS, MONITORING_ROLLOUTS, PREDICTION_PREFIX, PREDICTIONS
from meguri_monitoring import api, handlers, projection, store
from meguri_monitoring.measuring import Measurer
from meguri_monitoring.settings import Settings

MIGRATIONS = Path(__file__).parent / "migrations"


def build(settings: Settings | None = None) -> Service:
    settings = settings or Settings()
    database = Database(settings.database_url, MIGRATIONS)
    tables = Projection(database, projection.evolve, projection.HEARS, store.TABLES)
    service = Service(settings, description=__doc__ or "", database=database, projection=tables)
    assert service.decider is not None
    reader = service.reader(PREDICTIONS, [f"{PREDICTION_PREFIX}.*"], handlers.NAME)
    measurer = Measurer(
        log=service.log,
        database=database,
        projection=tables,
        decider=service.decider,
        data_url=settings.data_url,
    )
    watcher = handlers.Watcher(
        reader=reader,
        log=service.log,
        dead_letters=service.dead_letters,
        database=database,
        projection=tables,
        decider=service.decider,
        artifacts=Artifacts(settings.artifacts_url),
        data_url=settings.data_url,
        kept=measurer.look,
    )
    service.follow(reader, watcher.run)
    service.once_connected(measurer.run)
    service.reasons.append(watcher.trouble)
    service.warnings.append(measurer.trouble)
    service.follow_advisories()
    service.hear(Hearing(MONITORING_ROLLOUTS, [handlers.end_episode]))
    service.hear(Hearing(MONITORING_LABELS, [measurer.take]))
    service.app.include_router(api.routes(service, measurer))
    return service
