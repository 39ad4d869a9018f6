"""The registry: keeps specs, runs and versions, judges every trained model, and says who answers."""

from pathlib import Path

from meguri_chassis.bus import Hearing
from meguri_chassis.projection import Projection
from meguri_chassis.service import Service
from meguri_chassis.store import Database
from meguri_contracts.topology import REGISTRY_EPISODES, REGISTRY_JUDGE, REGISTRY_ROLLOUTS
from meguri_registry import api, batch_store, handlers, projection, store
from meguri_registry.settings import Settings

MIGRATIONS = Path(__file__).parent / "migrations"


def build(settings: Settings | None = None) -> Service:
    settings = settings or Settings()
    database = Database(settings.database_url, MIGRATIONS)
    service = Service(
        settings,
        description=__doc__ or "",
        database=database,
        projection=Projection(database, projection.evolve, projection.HEARS, (*store.TABLES, *batch_store.TABLES)),
    )
    service.hear(Hearing(REGISTRY_JUDGE, [handlers.judge], together=16))
    service.hear(Hearing(REGISTRY_ROLLOUTS, [handlers.watch]))
    service.hear(Hearing(REGISTRY_EPISODES, [handlers.go_back]))
    service.app.include_router(api.routes(service))
    return service
