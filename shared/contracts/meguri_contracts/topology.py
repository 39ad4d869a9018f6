"""Streams, durable consumers and ports: who says what, who hears it, and how long they may take.

`meguri provision` creates or updates what stands here; services only verify it.
"""

from dataclasses import dataclass

from meguri_contracts import events as e
from meguri_contracts.events import Event

LOG = "MEGURI"
PREDICTIONS = "PREDICTIONS"
DEAD = "DEAD"

EVENT_PREFIX = "meguri.events"
PREDICTION_PREFIX = "meguri.predictions"
DEAD_PREFIX = "meguri.dead"

MAX_INLINE_BYTES = 1024 * 1024
"""Largest body of an event that is worked on. The broker takes more, so that a refusal can be said and kept."""


@dataclass(frozen=True)
class Stream:
    """A JetStream stream. Times in seconds; 0 is for ever; `max_bytes` -1 is no limit."""

    name: str
    subjects: tuple[str, ...]
    max_age: float = 0
    max_bytes: int = -1
    duplicate_window: float = 3600


STREAMS = (
    Stream(LOG, (f"{EVENT_PREFIX}.>",)),
    Stream(PREDICTIONS, (f"{PREDICTION_PREFIX}.*",), max_age=7 * 86400, max_bytes=8 * 1024**3, duplicate_window=120),
    Stream(DEAD, (f"{DEAD_PREFIX}.*",)),
)


@dataclass(frozen=True)
class Consumer:
    """A durable pull consumer of the log: one per service and handler, shared by all replicas."""

    name: str
    hears: tuple[type[Event], ...]
    ack_wait: float = 30
    """Seconds without a sign of life after which another replica gets the message."""
    max_ack_pending: int = 1000
    """Messages in hand of all replicas together."""

    @property
    def subjects(self) -> tuple[str, ...]:
        return tuple(f"{EVENT_PREFIX}.{event.kind()}.>" for event in self.hears)


INGEST_ARRIVALS = Consumer("ingest-arrivals", (e.DataArrived,))
TRAINING_TRIGGERS = Consumer(
    "training-triggers",
    (
        e.SpecApplied,
        e.DataCommitted,
        e.TrainingRequested,
        e.DriftDetected,
        e.TrainingFailed,
        e.RolloutChanged,
        e.PromotionRejected,
        e.ApprovalRequested,
    ),
)
TRAINING_FITS = Consumer("training-fits", (e.TrainingStarted,), ack_wait=10, max_ack_pending=16)
REGISTRY_JUDGE = Consumer("registry-judge", (e.ModelTrained,))
MONITORING_ROLLOUTS = Consumer("monitoring-rollouts", (e.RolloutChanged,))

CONSUMERS = (INGEST_ARRIVALS, TRAINING_TRIGGERS, TRAINING_FITS, REGISTRY_JUDGE, MONITORING_ROLLOUTS)

SAID_BY: dict[type[Event], str] = {
    e.DataArrived: "upstream",
    e.DataCommitted: "ingest",
    e.DataRejected: "ingest",
    e.SpecApplied: "registry",
    e.TrainingRequested: "registry",
    e.TrainingStarted: "training",
    e.ModelTrained: "training",
    e.TrainingFailed: "training",
    e.ModelRegistered: "registry",
    e.PromotionRejected: "registry",
    e.ApprovalRequested: "registry",
    e.RolloutChanged: "registry",
    e.ModelLoaded: "inference",
    e.DriftDetected: "monitoring",
    e.EpisodeResolved: "monitoring",
}

PORTS = {"console": 8000, "ingest": 8001, "training": 8002, "registry": 8003, "inference": 8004, "monitoring": 8005}


def subject(kind: str, key: str) -> str:
    """Return the subject of an event: `meguri.events.<kind>.<key>`."""
    return f"{EVENT_PREFIX}.{kind}.{key}"


def key_subjects(key: str) -> str:
    """Return the filter for every event of a key, whatever its type."""
    return f"{EVENT_PREFIX}.*.{key}"
