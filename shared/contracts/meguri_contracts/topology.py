"""Streams, durable consumers and ports: who says what, who hears it, and how long they may take.

`meguri provision` creates or updates what stands here; services only verify it.
"""

from dataclasses import dataclass

from meguri_contracts import events as e
from meguri_contracts.events import Event

LOG = "MEGURI"
PREDICTIONS = "PREDICTIONS"
WINDOWS = "WINDOWS"
DEAD = "DEAD"
ADVISORIES = "ADVISORIES"

EVENT_PREFIX = "meguri.events"
PREDICTION_PREFIX = "meguri.predictions"
WINDOW_PREFIX = "meguri.windows"
"""Before the model's name: parts of windows that a replica of monitoring has yet to count."""
INFER_PREFIX = "meguri.infer"
"""Before the model's name: where a prediction can be asked for by request and reply."""
DEAD_PREFIX = "meguri.dead"
ADVISORY_PREFIX = "$JS.EVENT.ADVISORY.CONSUMER"

FORMER_TRACE = "meguri-former-trace"
"""Header with the traceparent that a message had before it was sent back: linked to, not gone on with."""
STORED = "meguri-stored"
"""Header that a restored message carries: when the broker first had it, if the message does not say its time itself."""

MAX_INLINE_BYTES = 1024 * 1024
"""Largest body of an event that is worked on. The broker takes more, so that a refusal can be said and kept."""


FULL = frozenset({10023, 10047, 10077})
"""The broker's error codes for no room: on its disk (two of them), and in a stream at its limit of bytes."""
MAKE_ROOM = (
    "raise MEGURI_LOG_MAX_BYTES and run `meguri provision`, or give the broker more disk and restart it; then repeat"
)
"""What to do when the log takes no more."""


@dataclass(frozen=True)
class Stream:
    """A JetStream stream. Times in seconds; 0 is for ever; `max_bytes` -1 is no limit.

    `keeps` says what happens at the limit: what is there is kept and what comes refused, or the oldest makes room.
    """

    name: str
    subjects: tuple[str, ...]
    max_age: float = 0
    max_bytes: int = -1
    duplicate_window: float = 3600
    keeps: bool = False


STREAMS = (
    Stream(LOG, (f"{EVENT_PREFIX}.>",), keeps=True),
    Stream(PREDICTIONS, (f"{PREDICTION_PREFIX}.*",), max_age=7 * 86400, max_bytes=8 * 1024**3, duplicate_window=120),
    Stream(WINDOWS, (f"{WINDOW_PREFIX}.*",), max_age=7 * 86400, max_bytes=256 * 1024**2, duplicate_window=120),
    Stream(DEAD, (f"{DEAD_PREFIX}.>",), keeps=True),
    # What the broker itself gives up on: it moves no message, it only says so.
    Stream(
        ADVISORIES,
        (f"{ADVISORY_PREFIX}.MAX_DELIVERIES.>", f"{ADVISORY_PREFIX}.MSG_TERMINATED.>"),
        max_age=30 * 86400,
        max_bytes=64 * 1024**2,
        duplicate_window=120,
    ),
)


@dataclass(frozen=True)
class Consumer:
    """A durable pull consumer of the log: one per service and handler, shared by all replicas.

    One of another `stream` hears no events, but everything there.
    """

    name: str
    hears: tuple[type[Event], ...]
    ack_wait: float = 30
    """Seconds without a sign of life after which another replica gets the message."""
    max_ack_pending: int = 1000
    """Messages in hand of all replicas together."""
    stream: str = LOG

    @property
    def subjects(self) -> tuple[str, ...]:
        return tuple(f"{EVENT_PREFIX}.{event.kind()}.>" for event in self.hears) or (">",)


INGEST_ARRIVALS = Consumer("ingest-arrivals", (e.DataArrived,))
TRAINING_TRIGGERS = Consumer(
    "training-triggers",
    (
        e.SpecApplied,
        e.DataCommitted,
        e.TrainingRequested,
        *e.OPENINGS,
        e.TrainingFailed,
        e.RolloutChanged,
        e.PromotionRejected,
        e.ApprovalRequested,
    ),
)
TRAINING_FITS = Consumer("training-fits", (e.TrainingStarted,), ack_wait=10, max_ack_pending=16)
REGISTRY_JUDGE = Consumer("registry-judge", (e.ModelTrained,))
REGISTRY_ROLLOUTS = Consumer("registry-rollouts", (e.RolloutObserved, e.QualityMeasured))
REGISTRY_EPISODES = Consumer("registry-episodes", e.OPENINGS)
INFERENCE_BATCHES = Consumer("inference-batches", (e.BatchRequested, e.ShardPlanned), ack_wait=10, max_ack_pending=64)
MONITORING_ROLLOUTS = Consumer("monitoring-rollouts", (e.SpecApplied, e.RolloutChanged))
MONITORING_LABELS = Consumer("monitoring-labels", (e.LabelsArrived,))
MONITORING_NOTICES = Consumer("monitoring-notices", (*e.OPENINGS, e.EpisodeResolved))
MONITORING_WINDOWS = Consumer("monitoring-windows", (), stream=WINDOWS, ack_wait=5, max_ack_pending=64)
MONITORING_ADVISORIES = Consumer("monitoring-advisories", (), stream=ADVISORIES)

CONSUMERS = (
    INGEST_ARRIVALS,
    TRAINING_TRIGGERS,
    TRAINING_FITS,
    REGISTRY_JUDGE,
    REGISTRY_ROLLOUTS,
    REGISTRY_EPISODES,
    INFERENCE_BATCHES,
    MONITORING_ROLLOUTS,
    MONITORING_LABELS,
    MONITORING_NOTICES,
    MONITORING_WINDOWS,
    MONITORING_ADVISORIES,
)

EVERY_SERVICE, OPERATOR = "every service", "operator"

SAID_BY: dict[type[Event], str] = {
    e.DataArrived: "upstream",
    e.DataCommitted: "ingest",
    e.DataRejected: "ingest",
    e.SpecApplied: "registry",
    e.TrainingRequested: "registry",
    e.TrainingStarted: "training",
    e.ModelTrained: "training",
    e.TrainingFailed: "training",
    e.TrainingPostponed: "training",
    e.LoopBroken: "training",
    e.ModelRegistered: "registry",
    e.PromotionRejected: "registry",
    e.ApprovalRequested: "registry",
    e.RolloutChanged: "registry",
    e.ModelLoaded: "inference",
    e.RolloutObserved: "inference",
    e.LabelsArrived: "upstream",
    e.QualityMeasured: "monitoring",
    e.BatchRequested: "inference",
    e.ShardPlanned: "inference",
    e.ShardScored: "inference",
    e.BatchCompleted: "inference",
    e.BatchFailed: "inference",
    e.DriftDetected: "monitoring",
    e.PerformanceDegraded: "monitoring",
    e.AnomalyDetected: "monitoring",
    e.EpisodeWorsened: "monitoring",
    e.EpisodeAcknowledged: "monitoring",
    e.EpisodeResolved: "monitoring",
    e.NoticeSent: "monitoring",
    e.NoticeFailed: "monitoring",
    e.MeasuresRefilled: "monitoring",
    e.MessageParked: EVERY_SERVICE,
    e.MessageRedriven: OPERATOR,
}

PORTS = {"console": 8000, "ingest": 8001, "training": 8002, "registry": 8003, "inference": 8004, "monitoring": 8005}


def subject(kind: str, key: str) -> str:
    """Return the subject of an event: `meguri.events.<kind>.<key>`; without the last part if there is no key."""
    return f"{EVENT_PREFIX}.{kind}.{key}" if key else f"{EVENT_PREFIX}.{kind}"


def dead_subject(consumer: str, stream: str, sequence: int) -> str:
    """Return the subject of the dead letter that `consumer` made of a message: one place for each, for ever."""
    return f"{DEAD_PREFIX}.{consumer}.{stream}.{sequence}"


def key_subjects(key: str) -> str:
    """Return the filter for every event of a key, whatever its type."""
    return f"{EVENT_PREFIX}.*.{key}"
