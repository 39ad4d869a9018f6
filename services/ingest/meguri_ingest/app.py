"""Ingest: takes what upstreams publish, checks it, commits it to versioned datasets, and gives a receipt for each event."""

from pathlib import Path

from meguri_chassis.artifacts import Artifacts
from meguri_chassis.bus import Hearing
from meguri_chassis.projection import Projection
from meguri_chassis.service import Service
from meguri_chassis.store import Database
from meguri_contracts.topology import INGEST_ARRIVALS
from meguri_ingest import api, projection, store
from meguri_ingest.arrivals import Lanes
from meguri_ingest.budget import Budget
from meguri_ingest.handlers import Receiver
from meguri_ingest.settings import Settings

MIGRATIONS = Path(__file__).parent / "migrations"


def build(settings: Settings | None = None) -> Service:
    settings = settings or Settings()
    database = Database(settings.database_url, MIGRATIONS)
    tables = Projection(database, projection.evolve, projection.HEARS, store.TABLES, keeps_the_rest=True)
    service = Service(settings, description=__doc__ or "", database=database, projection=tables)
    artifacts = Artifacts(settings.artifacts_url)
    budget = Budget(settings.memory_bytes)
    lanes = Lanes(
        log=service.log,
        database=database,
        projection=tables,
        data_url=settings.data_url,
        # Uploads are kept as artifacts, so that their events are references like all others.
        roots=[*settings.roots.split(","), artifacts.url],
        max_file_bytes=settings.max_file_bytes,
        budget=budget,
    )
    receiver = Receiver(service.log, lanes)
    service.hear(Hearing(INGEST_ARRIVALS, [receiver.take], refuse=receiver.refuse, together=settings.arrivals_in_hand))
    service.warnings.append(lanes.warning)
    service.app.include_router(api.routes(service, settings, artifacts, lanes, budget))
    return service
