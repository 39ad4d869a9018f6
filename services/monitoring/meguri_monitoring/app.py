"""Monitoring: keeps every prediction, holds windows of them against the reference, joins labels to them however late, and tells
of what is not as it was once per episode."""

import asyncio
from collections.abc import Collection
from pathlib import Path

from nats.errors import Error as NatsError
from nats.js.errors import NotFoundError

from meguri_chassis.artifacts import Artifacts
from meguri_chassis.bus import Hearing
from meguri_chassis.processes import Home
from meguri_chassis.projection import Projection
from meguri_chassis.service import Service
from meguri_chassis.store import Database
from meguri_chassis.work import WorkQueue
from meguri_contracts.topology import (
    MONITORING_LABELS,
    MONITORING_NOTICES,
    MONITORING_ROLLOUTS,
    MONITORING_WINDOWS,
    PREDICTION_PREFIX,
    PREDICTIONS,
)
from meguri_monitoring import api, handlers, projection
from meguri_monitoring.episodes.concluding import Concluder
from meguri_monitoring.evaluators import api as evaluator_api
from meguri_monitoring.evaluators.evaluating import Evaluators
from meguri_monitoring.evaluators.following import Follower
from meguri_monitoring.evaluators.running import PlugIns
from meguri_monitoring.notices import api as notice_api
from meguri_monitoring.notices.notifying import Notifier
from meguri_monitoring.predictions.recent import Recent
from meguri_monitoring.profiles.references import References
from meguri_monitoring.quality.measuring import Measurer
from meguri_monitoring.quality.performing import Performance
from meguri_monitoring.quality.scoring import Scorer
from meguri_monitoring.recording import NAME, Hooks, Recorder
from meguri_monitoring.reports import api as reporting
from meguri_monitoring.settings import Settings
from meguri_monitoring.whatif import api as whatif_api
from meguri_monitoring.windows.counting import Counter
from meguri_monitoring.windows.sweeping import Sweeper

NOTICES_TOGETHER = 8
"""Messages about episodes in hand: a place that does not answer must not keep the others waiting."""
PAUSE_WITHOUT_STREAM = 2.0
"""Seconds after which it is looked again whether the stream of predictions was put right."""
MIGRATIONS = Path(__file__).parent / "migrations"


def build(settings: Settings | None = None) -> Service:
    settings = settings or Settings()
    database = Database(settings.database_url, MIGRATIONS)
    tables = Projection(database, projection.evolve, projection.HEARS, projection.TABLES)
    service = Service(settings, description=__doc__ or "", database=database, projection=tables)
    decider, artifacts = service.decider, Artifacts(settings.artifacts_url)
    assert decider is not None

    async def newest(model: str) -> int:
        """The sequence of the last message of a model's predictions, 0 without one."""
        try:
            found = await service.jetstream().get_last_msg(PREDICTIONS, f"{PREDICTION_PREFIX}.{model}")
        except NotFoundError:
            return 0
        return int(found.seq or 0)

    concluder = Concluder(log=service.log, database=database, projection=tables, decider=decider, newest=newest)
    scorer = Scorer(
        log=service.log,
        database=database,
        projection=tables,
        artifacts=artifacts,
        data_url=settings.data_url,
        measurer=Measurer(database, decider),
        performance=Performance(database, decider, settings.data_url),
    )
    plug_ins = PlugIns(Home.of(settings), seconds=settings.evaluator_seconds, memory=settings.evaluator_memory)
    follower = Follower(database, plug_ins, settings.data_url)
    evaluators = Evaluators(log=service.log, database=database, projection=tables, decider=decider, follower=follower)

    def kept(models: Collection[str]) -> None:
        """Predictions of these came into the tables."""
        scorer.look(models)
        concluder.heard(models)
        evaluators.look(models)

    references = References(log=service.log, database=database, projection=tables, artifacts=artifacts)
    recent = Recent()
    queue = WorkQueue(service.jetstream, MONITORING_WINDOWS)

    async def stream_is_there() -> None:
        last = int((await service.jetstream().stream_info(PREDICTIONS)).state.last_seq)
        if lost := recorder.what_is_lost(last):
            await asyncio.sleep(PAUSE_WITHOUT_STREAM)
            raise NatsError(lost)

    reader = service.reader(PREDICTIONS, [f"{PREDICTION_PREFIX}.*"], NAME, before=stream_is_there)
    recorder = Recorder(
        reader=reader,
        log=service.log,
        dead_letters=service.dead_letters,
        database=database,
        projection=tables,
        references=references,
        recent=recent,
        queue=queue,
        replica=settings.replica,
        data_url=settings.data_url,
        hooks=Hooks(kept=kept, refused=concluder.refused),
    )
    counter = Counter(
        queue=queue,
        database=database,
        references=references,
        recent=recent,
        data_url=settings.data_url,
        judged=concluder.look,
    )
    notifier = Notifier(log=service.log, database=database, projection=tables, decider=decider, settings=settings)
    service.during(plug_ins.open)
    service.follow(reader, recorder.run)
    service.once_connected(counter.run)
    service.once_connected(Sweeper(queue, database).run)
    service.once_connected(concluder.run)
    service.once_connected(scorer.run)
    service.once_connected(evaluators.run)
    service.reasons += [recorder.trouble, concluder.trouble]
    service.warnings += [
        queue.trouble,
        counter.trouble,
        scorer.trouble,
        evaluators.trouble,
        notifier.trouble,
        notifier.untold,
    ]
    service.follow_advisories()
    service.hear(Hearing(MONITORING_ROLLOUTS, [handlers.end_episode, concluder.watch_otherwise]))
    service.hear(Hearing(MONITORING_LABELS, [scorer.take]))
    service.hear(Hearing(MONITORING_NOTICES, [notifier.tell], together=NOTICES_TOGETHER))
    service.app.include_router(api.routes(service, scorer))
    service.app.include_router(evaluator_api.routes(service, evaluators))
    service.app.include_router(notice_api.routes())
    service.app.include_router(reporting.routes(service, settings))
    service.app.include_router(whatif_api.routes(service, references))
    return service
