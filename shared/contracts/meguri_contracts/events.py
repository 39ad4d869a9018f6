"""Every event of meguri, in the order of the loop. Past tense, frozen, references instead of payloads.

Readers ignore unknown fields, so a new field with a default is free; any other change is a new version beside the old.
One example message of each type is kept in tests/contracts/examples.
"""

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from meguri_contracts.names import ConsumerName, DatasetName, EpisodeId, EventId, ModelName, RunId
from meguri_contracts.spec import ModelSpec


class Event(BaseModel):
    """A fact. `type` is its CloudEvents type; `key_field` names the field that is the last part of its subject."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="null")

    type: ClassVar[str]
    key_field: ClassVar[Literal["dataset", "model", "consumer"]]

    @property
    def key(self) -> str:
        return str(getattr(self, self.key_field))

    @property
    def identity(self) -> str:
        """Tells apart events of one type and key that have the same cause."""
        return ""

    @property
    def causes(self) -> tuple[str, ...]:
        """Ids of the events that led to this one, where they are several or long past."""
        return ()

    @property
    def starts_trace(self) -> bool:
        """Whether what follows is a new trace, linked to the causes, instead of a part of one cause's trace."""
        return len(self.causes) > 1

    def hops(self, cause: int) -> int:
        """How many reactions lie between this event and what came from outside, if `cause` lie before what caused it."""
        return cause + 1

    @classmethod
    def kind(cls) -> str:
        """The type without prefix and version, as it stands in the subject: `data-arrived`."""
        return cls.type.removeprefix("meguri.").rsplit(".", 1)[0]


class Part(BaseModel):
    """A piece of an event."""

    model_config = ConfigDict(frozen=True, extra="ignore")


# --- data -----------------------------------------------------------------------------------------------------------


class DataArrived(Event):
    """Upstream has data: rows inline in `records`, or a file by `uri`. Exactly one of both.

    The producer is the CloudEvents source; `producer` is for upstreams that send no headers.
    """

    type = "meguri.data-arrived.v1"
    key_field = "dataset"

    dataset: DatasetName
    records: tuple[dict[str, Any], ...] | None = None
    uri: str | None = None
    format: Literal["csv", "jsonl", "parquet", "arrow"] | None = None
    """Of the file; taken from the ending of the uri when left out."""
    producer: str | None = None


class Contribution(Part):
    """What one arrival brought into a dataset version."""

    event: EventId
    producer: str
    rows: int = Field(ge=0)
    quarantined: int = Field(default=0, ge=0)


class DataCommitted(Event):
    """A dataset has a new version. Said by ingest after the commit is durable."""

    type = "meguri.data-committed.v1"
    key_field = "dataset"

    dataset: DatasetName
    version: int = Field(ge=0)
    """Version of the Delta table."""
    digest: str
    """SHA-256 over the content of this and all earlier versions, in hex."""
    rows: int = Field(ge=0)
    """Rows that this version added."""
    total_rows: int = Field(ge=0)
    events: tuple[Contribution, ...]

    @property
    def identity(self) -> str:
        return str(self.version)

    @property
    def causes(self) -> tuple[str, ...]:
        return tuple(contribution.event for contribution in self.events)


class DataRejected(Event):
    """An arrival was refused whole. Its event stays in the log, so it can be looked at and sent again corrected."""

    type = "meguri.data-rejected.v1"
    key_field = "dataset"

    dataset: DatasetName
    event: EventId
    producer: str
    reason: str

    @property
    def identity(self) -> str:
        return self.event


# --- training -------------------------------------------------------------------------------------------------------


class SpecApplied(Event):
    """A model has a new spec. `version` counts from 1 without gaps; `digest` is over the spec's canonical JSON."""

    type = "meguri.spec-applied.v1"
    key_field = "model"

    model: ModelName
    spec: ModelSpec
    version: int = Field(ge=1)
    digest: str
    actor: str


class TrainingRequested(Event):
    """Someone wants a run now, whatever the triggers say."""

    type = "meguri.training-requested.v1"
    key_field = "model"

    model: ModelName
    reason: str
    actor: str


class Trigger(Part):
    """An event that led to a run."""

    event: EventId
    kind: str
    """Of the event: `data-committed`, `drift-detected`, `training-requested`, `spec-applied`."""
    hops: int = Field(default=0, ge=0)
    """Of the event: how many reactions lie between it and what came from outside."""


class TrainingStarted(Event):
    """A run is due and everything that it depends on is fixed here; whoever hears this can do the fit, and do it again."""

    type = "meguri.training-started.v1"
    key_field = "model"

    model: ModelName
    run: RunId
    spec: ModelSpec
    spec_version: int
    dataset_version: int
    dataset_digest: str
    dataset_rows: int
    """Rows of that dataset version, all versions before it included."""
    triggers: tuple[Trigger, ...]
    champion: "Deployed | None" = None
    """Whom the candidate is compared with on the hold-out."""

    @property
    def identity(self) -> str:
        # A message that comes again may find another run due, and be the only one left to start it.
        return self.run

    @property
    def causes(self) -> tuple[str, ...]:
        return tuple(trigger.event for trigger in self.triggers)

    @property
    def starts_trace(self) -> bool:
        return len(self.triggers) > 1 or any(trigger.kind == "drift-detected" for trigger in self.triggers)

    def hops(self, cause: int) -> int:
        # What is fresh among the triggers makes the run a reaction to something new.
        return min((trigger.hops for trigger in self.triggers), default=cause) + 1


class Artifact(Part):
    """A file in the artifact store; the same content has the same address."""

    uri: str
    digest: str
    """SHA-256 of the bytes, in hex."""
    size: int = Field(ge=0)
    """Bytes."""


class Tensor(Part):
    """One input or output of a served model. -1 in `shape` is the row dimension."""

    name: str
    datatype: Literal["FP32", "FP64", "INT64", "BOOL", "BYTES"]
    shape: tuple[int, ...]


class Signature(Part):
    """What goes into a model and what comes out. `features` names the columns of the one input, in order."""

    features: tuple[str, ...]
    input: Tensor
    outputs: tuple[Tensor, ...]


class Deployed(Part):
    """A version with all that is needed to load and to serve it."""

    version: int = Field(ge=1)
    run: RunId
    onnx: Artifact
    profile: Artifact
    signature: Signature


class Evaluation(Part):
    """Metrics of one version on a hold-out. `version` is 0 for the candidate, which has none yet."""

    version: int = Field(ge=0)
    metrics: dict[str, float]


class ModelTrained(Event):
    """A fit succeeded. `candidate` and `champion` were measured on the same hold-out rows."""

    type = "meguri.model-trained.v1"
    key_field = "model"

    model: ModelName
    run: RunId
    spec_version: int
    dataset: DatasetName
    dataset_version: int
    dataset_digest: str
    train_rows: int
    holdout_rows: int
    candidate: Evaluation
    champion: Evaluation | None = None
    onnx: Artifact
    skops: Artifact
    profile: Artifact
    """Reference profile of the features, for monitoring."""
    signature: Signature
    parity: float
    """Largest difference between ONNX and scikit-learn on the hold-out: probabilities, or predictions in standard
    deviations of the target."""
    environment: dict[str, str]
    """Versions of Python and of the libraries that did the fit."""
    seconds: float
    """Duration of the run in its process: read, fit, evaluate, export."""
    fit_seconds: float
    """Of these, the call of `fit` alone."""


class TrainingFailed(Event):
    """A run ended without a model, for a reason that another try would meet again."""

    type = "meguri.training-failed.v1"
    key_field = "model"

    model: ModelName
    run: RunId
    reason: str


class Link(Part):
    """An event in a chain of causes."""

    event: EventId
    kind: str
    sequence: int
    """In the log."""


class LoopBroken(Event):
    """A run was due only because of what earlier runs led to, over and over; it was not started, and its triggers are dropped.

    New data or `meguri train` begin again. `chain` are the causes, the latest first, as far back as they were followed.
    """

    type = "meguri.loop-broken.v1"
    key_field = "model"

    model: ModelName
    triggers: tuple[Trigger, ...]
    limit: int
    """Reactions that may lie between a trigger and what came from outside."""
    chain: tuple[Link, ...]
    reason: str

    @property
    def causes(self) -> tuple[str, ...]:
        return tuple(trigger.event for trigger in self.triggers)


# --- registry -------------------------------------------------------------------------------------------------------


class ModelRegistered(Event):
    """A trained model got its version number, counted from 1 without gaps."""

    type = "meguri.model-registered.v1"
    key_field = "model"

    model: ModelName
    version: int = Field(ge=1)
    run: RunId


class Judged(Part):
    """One rule of a gate with the numbers that it was evaluated on."""

    rule: str
    holds: bool
    candidate: dict[str, float]
    champion: dict[str, float] | None = None


class PromotionRejected(Event):
    """The gate did not hold; the champion stays."""

    type = "meguri.promotion-rejected.v1"
    key_field = "model"

    model: ModelName
    version: int
    run: RunId
    reason: str
    judged: tuple[Judged, ...] = ()


class ApprovalRequested(Event):
    """The gate held, but a person must say yes: a model with these bytes was rolled back before."""

    type = "meguri.approval-requested.v1"
    key_field = "model"

    model: ModelName
    version: int
    run: RunId
    reason: str
    judged: tuple[Judged, ...] = ()


class Plan(Part):
    """The whole traffic plan of a model."""

    champion: Deployed


class RolloutChanged(Event):
    """Who answers has changed. Said by the registry; inference and monitoring follow it."""

    type = "meguri.rollout-changed.v1"
    key_field = "model"

    model: ModelName
    plan: Plan
    previous: int | None = None
    """Version of the champion before."""
    reason: str
    actor: str
    judged: tuple[Judged, ...] = ()


# --- serving and watching -------------------------------------------------------------------------------------------


class ModelLoaded(Event):
    """A replica of inference answers with a version from now on."""

    type = "meguri.model-loaded.v1"
    key_field = "model"

    model: ModelName
    version: int
    replica: str
    seconds: float
    """From hearing of the version to answering with it."""

    @property
    def identity(self) -> str:
        return self.replica


class Window(Part):
    """Predictions that a verdict rests on: stream sequences of PREDICTIONS, both ends included."""

    first: int
    last: int
    rows: int


class DriftDetected(Event):
    """Live features no longer look like the reference. Said by monitoring, once per episode.

    `distance` is the Wasserstein distance of the worst feature in standard deviations of the reference; 0 when the two
    match. `ks` and `p_value` are of the two-sample Kolmogorov-Smirnov test of the same feature.
    """

    type = "meguri.drift-detected.v1"
    key_field = "model"

    model: ModelName
    version: int
    episode: EpisodeId
    feature: str
    producer: str
    """Who contributes most to the distance."""
    share: float
    """Share of the drifted features' distance that disappears without this producer."""
    distance: float = Field(ge=0)
    ks: float = Field(ge=0, le=1)
    p_value: float = Field(ge=0, le=1)
    drifted: tuple[str, ...]
    """All features that moved, worst first, at most 20."""
    window: Window
    samples: tuple[str, ...] = ()
    """Some prediction ids of the window, of that producer."""


class EpisodeResolved(Event):
    """Live features look like the reference again, or another version with another reference serves."""

    type = "meguri.episode-resolved.v1"
    key_field = "model"

    model: ModelName
    version: int
    episode: EpisodeId
    reason: str


# --- operation ------------------------------------------------------------------------------------------------------


class MessageParked(Event):
    """A message could not be handled by a consumer and is kept as a dead letter until somebody sends it back."""

    type = "meguri.message-parked.v1"
    key_field = "consumer"

    consumer: ConsumerName
    stream: str
    """Where the message is, at `sequence`."""
    sequence: int
    subject: str
    event: str
    """Id of the event; of a message that is none, its place."""
    producer: str
    deliveries: int
    reason: str

    @property
    def identity(self) -> str:
        return f"{self.stream}-{self.sequence}"


class MessageRedriven(Event):
    """Somebody sent a dead letter back to where it came from, repaired or as it was."""

    type = "meguri.message-redriven.v1"
    key_field = "consumer"

    consumer: ConsumerName
    stream: str
    sequence: int
    """Of the message that was parked."""
    event: str
    """Id of the event that was parked."""
    sent: str = ""
    """Id under which it was sent back, if that is another: an event that could be read and was edited is another one."""
    edited: bool
    actor: str

    @property
    def identity(self) -> str:
        return f"{self.stream}-{self.sequence}"


TrainingStarted.model_rebuild()

EVENTS: tuple[type[Event], ...] = (
    DataArrived,
    DataCommitted,
    DataRejected,
    SpecApplied,
    TrainingRequested,
    TrainingStarted,
    ModelTrained,
    TrainingFailed,
    LoopBroken,
    ModelRegistered,
    PromotionRejected,
    ApprovalRequested,
    RolloutChanged,
    ModelLoaded,
    DriftDetected,
    EpisodeResolved,
    MessageParked,
    MessageRedriven,
)
BY_TYPE: dict[str, type[Event]] = {event.type: event for event in EVENTS}
BY_KIND: dict[str, type[Event]] = {event.kind(): event for event in EVENTS}
