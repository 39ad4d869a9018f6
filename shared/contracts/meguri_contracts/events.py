"""Every event of meguri, in the order of the loop. Past tense, frozen, references instead of payloads.

Readers ignore unknown fields, so a new field with a default is free; any other change is a new version beside the old.
One example message of each type is kept in tests/contracts/examples.
"""

from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from meguri_contracts.names import BatchId, ConsumerName, DatasetName, EpisodeId, EventId, ModelName, RunId
from meguri_contracts.spec import Action, CanaryPolicy, EpisodeKind, ModelSpec, TrialPolicy


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
    """Of the event: `data-committed`, `training-requested`, `spec-applied`, or one that begins an episode."""
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
        of_episodes = {event.kind() for event in OPENINGS}
        return len(self.triggers) > 1 or any(trigger.kind in of_episodes for trigger in self.triggers)

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
    """What goes into a model and what comes out. `features` names what goes in, in order.

    Features that are all numbers are the columns of the one `input`, of shape [-1, n]. When some are not, each is an input by
    itself, named like it, of shape [-1, 1]: these are `inputs`, and `input` is the first of them.
    """

    features: tuple[str, ...]
    input: Tensor
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...]
    example: tuple[float | int | bool | str, ...] = ()
    """A row that the model can answer, a value per feature: of the rows trained on the median or the most frequent value."""
    classes: tuple[int | bool | str, ...] = ()
    """Of a classifier, in the order of its probabilities."""


Engine = Literal["onnx", "scikit-learn"]
"""What computes the answers of a served model."""


class Deployed(Part):
    """A version with all that is needed to load and to serve it."""

    version: int = Field(ge=1)
    run: RunId
    onnx: Artifact | None
    """None for a model that cannot be written as ONNX."""
    profile: Artifact
    signature: Signature
    skops: Artifact | None = None
    engine: Engine = "onnx"
    engine_reason: str = ""
    """Why it is not ONNX Runtime that answers."""

    @property
    def served(self) -> Artifact:
        """The file that its engine loads."""
        file = self.onnx if self.engine == "onnx" else self.skops
        if file is None:
            raise ValueError(f"version {self.version} has no file for {self.engine}")
        return file


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
    onnx: Artifact | None
    """None when the model cannot be written as ONNX."""
    skops: Artifact
    profile: Artifact
    """Reference profile of the features, for monitoring."""
    signature: Signature
    parity: float
    """Largest difference between what is served and scikit-learn on the hold-out: probabilities, or predictions in standard
    deviations of the target."""
    engine: Engine = "onnx"
    engine_reason: str = ""
    """Why it is not ONNX Runtime that will answer."""
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


class TrainingPostponed(Event):
    """A run is wanted and does not begin yet; `reason` says what it waits for. Said once for the same triggers and reason."""

    type = "meguri.training-postponed.v1"
    key_field = "model"

    model: ModelName
    triggers: tuple[Trigger, ...]
    """Those that want it."""
    rows: int = Field(ge=0)
    """New rows since the last run."""
    needed: int = Field(ge=0)
    """New rows that would be enough."""
    reason: str

    @property
    def causes(self) -> tuple[str, ...]:
        return tuple(trigger.event for trigger in self.triggers)

    @property
    def starts_trace(self) -> bool:
        return False


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
    """The gate did not hold, or it was compared with another champion, or another version is tried; the champion stays."""

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


def _that_are_known(policy: type[BaseModel]) -> BeforeValidator:
    """A spec is refused when it has unknown fields, an event is not."""

    def known(given: Any) -> Any:
        return (
            {name: given[name] for name in policy.model_fields if name in given} if isinstance(given, dict) else given
        )

    return BeforeValidator(known)


class Canary(Part):
    """A candidate that answers a growing share of the requests until it is champion or is taken back."""

    candidate: Deployed
    weight: float = Field(gt=0, lt=1)
    """Share of the requests that it answers now."""
    step: int = Field(ge=0)
    """Which of the policy's steps that is, from 0."""
    policy: Annotated[CanaryPolicy, _that_are_known(CanaryPolicy)]


class Arm(Part):
    """One of the versions that an A/B test compares with the champion."""

    candidate: Deployed
    weight: float = Field(gt=0, lt=1)
    """Share of the entities that it answers; the champion answers the rest."""


class Trial(Part):
    """An A/B test. The same entity is answered by the same version for as long as it runs."""

    arms: tuple[Arm, ...] = Field(min_length=1)
    policy: Annotated[TrialPolicy, _that_are_known(TrialPolicy)]


class Shadow(Part):
    """A candidate that is asked too; its answers are kept beside those that were given, and nobody sees them."""

    candidate: Deployed
    share: float = Field(default=1, gt=0, le=1)
    """Of the requests."""


class Plan(Part):
    """The whole traffic plan of a model: who answers, and who is asked beside. Not canary and A/B test at once."""

    champion: Deployed
    canary: Canary | None = None
    trial: Trial | None = None
    shadows: tuple[Shadow, ...] = ()

    @property
    def challengers(self) -> tuple[Deployed, ...]:
        """The versions beside the champion that answer some of the requests."""
        arms = tuple(arm.candidate for arm in self.trial.arms) if self.trial else ()
        return (*((self.canary.candidate,) if self.canary else ()), *arms)

    @property
    def deployed(self) -> tuple[Deployed, ...]:
        """All versions that must be loaded, the champion first."""
        return (self.champion, *self.challengers, *(shadow.candidate for shadow in self.shadows))


class RolloutChanged(Event):
    """The traffic plan has changed. Said by the registry; inference and monitoring follow it."""

    type = "meguri.rollout-changed.v1"
    key_field = "model"

    model: ModelName
    plan: Plan
    previous: int | None = None
    """Version of the champion before; the present one if only the rest of the plan has changed."""
    back: bool = False
    """Whether this goes back to the champion before: who went is no earlier champion to go back to."""
    reason: str
    actor: str
    judged: tuple[Judged, ...] = ()


# --- serving and watching -------------------------------------------------------------------------------------------


Role = Literal["champion", "canary", "arm", "shadow"]
"""What a version was in the traffic plan when it answered."""


class ModelLoaded(Event):
    """A replica of inference answers with a version from now on."""

    type = "meguri.model-loaded.v1"
    key_field = "model"

    model: ModelName
    version: int
    role: Role = "champion"
    replica: str
    seconds: float
    """From hearing of the version to answering with it."""

    @property
    def identity(self) -> str:
        return self.replica


class ArmObserved(Part):
    """What one replica saw of one version since it follows the plan. All numbers only grow."""

    version: int
    role: Role
    requests: int = Field(ge=0)
    """That it was asked, answered or not."""
    errors: int = Field(default=0, ge=0)
    """Of these, those that it had no answer to, although they were right."""
    latency: tuple[int, ...] = ()
    """Requests that took up to each of `LATENCY_BOUNDS`; the last number is of those that took longer."""
    pairs: int = Field(default=0, ge=0)
    """Of a shadow: rows that it and the one who answered were both asked."""
    disagreed: int = Field(default=0, ge=0)
    """Of the pairs, those with another label, or a prediction that differs by more than a thousandth."""
    difference: float = Field(default=0, ge=0)
    """Sum over the pairs of the absolute difference: of the prediction, or of the largest probability."""


LATENCY_BOUNDS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds, from the request's head to its answer."""


class RolloutObserved(Event):
    """How the versions of a plan with more than a champion are doing, as one replica of inference sees it.

    A replica says it a second after something new happened, and the more rarely the longer the plan is in force.
    """

    type = "meguri.rollout-observed.v1"
    key_field = "model"

    model: ModelName
    rollout: EventId
    """Of the plan that this is about."""
    replica: str
    """One life of a replica: after a restart it is another, which counts from zero."""
    number: int = Field(ge=1)
    """Counts what this replica says of this plan; a later one replaces an earlier one."""
    seconds: float = Field(ge=0)
    """Since the replica follows the plan."""
    arms: tuple[ArmObserved, ...]

    @property
    def identity(self) -> str:
        return f"{self.replica}-{self.number}"


class Label(Part):
    """The truth about a prediction: the one with an id, or else the last one about an entity up to a time."""

    prediction_id: str | None = Field(default=None, min_length=1, max_length=256)
    entity: str | None = Field(default=None, min_length=1, max_length=256)
    time: AwareDatetime | None = None
    """When it was so, of an entity; the time of the event when left out."""
    label: float | int | bool | str

    @model_validator(mode="after")
    def _is_of_one(self) -> Self:
        if (self.prediction_id is None) == (self.entity is None):
            raise ValueError("a label is of a prediction_id or of an entity: give one of both")
        return self

    @field_validator("time", mode="after")
    @classmethod
    def _in_utc(cls, time: datetime | None) -> datetime | None:
        try:
            return time and time.astimezone(UTC)
        except OverflowError as error:
            raise ValueError("outside the years 1 to 9999 in UTC") from error


class LabelsArrived(Event):
    """Upstream knows what should have been predicted."""

    type = "meguri.labels-arrived.v1"
    key_field = "model"

    model: ModelName
    labels: tuple[Label, ...]
    producer: str | None = None
    """For upstreams that send no headers; else it is the CloudEvents source."""


class ArmQuality(Part):
    """What the labels say of one version's predictions since it is in the plan.

    A row's score is 1 for the right class and 0 for a wrong one, or minus the absolute error of a regression: more is better.
    """

    version: int
    labels: int = Field(ge=0)
    total: float
    """Sum of the scores."""
    squares: float = Field(ge=0)
    """Sum of their squares."""


class QualityMeasured(Event):
    """How good the versions of a plan with more than a champion are by the labels that arrived. Said by monitoring.

    The numbers are counted since champion and challengers are these.
    """

    type = "meguri.quality-measured.v1"
    key_field = "model"

    model: ModelName
    arms: tuple[ArmQuality, ...]
    """The champion first."""


_FINITE = ConfigDict(allow_inf_nan=False)
"""Numbers that every reader can keep: no database has both infinity and JSON."""


class Window(Part):
    """Predictions that a verdict rests on: stream sequences of PREDICTIONS, both ends included."""

    first: int
    last: int
    rows: int


class DriftDetected(Event):
    """Live rows no longer look like the reference. Said by monitoring, once per episode.

    `distance` is the Wasserstein distance of the worst feature in standard deviations of the reference, or of what is no number
    the Jensen-Shannon distance; 0 when the two match. `ks` and `p_value` are of the two-sample Kolmogorov-Smirnov test of the
    same feature; of what is no number, `ks` is the largest difference of a category's share and `p_value` of the test used.
    """

    model_config = _FINITE

    type = "meguri.drift-detected.v1"
    key_field = "model"

    model: ModelName
    version: int
    episode: EpisodeId
    about: Literal["drift", "prediction", "missing", "categories"] = "drift"
    feature: str
    """The worst one; about the prediction the column of the answer."""
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
    traces: tuple[str, ...] = ()
    """Trace ids of these."""
    inputs_moved: bool | None = None
    """About the prediction: whether inputs moved in the same windows; null when it is not known or is about inputs itself."""
    text: str = ""
    """The episode in a sentence, in English."""
    action: Action = "retrain"
    action_reason: str = ""
    """Why it is not what the spec says for this kind."""

    @property
    def identity(self) -> str:
        return self.episode


class PerformanceDegraded(Event):
    """Predictions of a version are worse than they were, by the labels that arrived. Said by monitoring, once per episode.

    About a canary or a part of an A/B test, `rollback` asks that it answer nobody any more; the champion stays.
    """

    model_config = _FINITE

    type = "meguri.performance-degraded.v1"
    key_field = "model"

    model: ModelName
    version: int
    episode: EpisodeId
    about: Literal["performance"] = "performance"
    role: Role = "champion"
    """What the version is in the traffic plan; never a shadow."""
    metric: str
    """`accuracy`, or `mae` of a regression."""
    before: float
    now: float
    labels: int = Field(ge=0)
    """Labelled predictions that `now` rests on."""
    coverage: float | None = None
    """Share of the version's answers that have a label."""
    producer: str = ""
    """Whose predictions lost most."""
    share: float = 0
    """Of the lost score, what is that producer's."""
    samples: tuple[str, ...] = ()
    """Some prediction ids that were wrong, of that producer."""
    traces: tuple[str, ...] = ()
    text: str = ""
    action: Action = "retrain"
    action_reason: str = ""

    @property
    def identity(self) -> str:
        return self.episode


class AnomalyDetected(Event):
    """Something else than distribution or quality is not as it was. Said by monitoring, once per episode."""

    model_config = _FINITE

    type = "meguri.anomaly-detected.v1"
    key_field = "model"

    model: ModelName
    version: int
    episode: EpisodeId
    about: Literal["schema", "volume", "silence", "measure", "evaluator"]
    subject: str
    """The column, the producer, `evaluator.number` of a measure, or the evaluator that fails."""
    value: float
    """What was seen: requests a second, seconds without one, rows refused, the distance of a measure from its reference, or
    the requests that an evaluator cannot do; 0 when it does not work at all."""
    expected: float
    """What it is held against, in the same unit."""
    producer: str = ""
    share: float = 0
    window: Window | None = None
    samples: tuple[str, ...] = ()
    traces: tuple[str, ...] = ()
    """Of a measure first the trace in which most rows of the window were left out, or its last rows were written."""
    inputs_moved: bool | None = None
    """Of a measure: whether the model's inputs have an open episode or moved in their last windows."""
    text: str = ""
    action: Action = "notify"
    action_reason: str = ""

    @property
    def identity(self) -> str:
        return self.episode


class EpisodeWorsened(Event):
    """An open episode is much worse than when this was last said."""

    model_config = _FINITE

    type = "meguri.episode-worsened.v1"
    key_field = "model"

    model: ModelName
    version: int
    episode: EpisodeId
    about: EpisodeKind
    subject: str
    before: float
    """The score that was last said, in the unit of its kind."""
    now: float
    window: Window | None = None
    text: str = ""

    @property
    def identity(self) -> str:
        return self.episode


class EpisodeAcknowledged(Event):
    """A person has seen an open episode."""

    type = "meguri.episode-acknowledged.v1"
    key_field = "model"

    model: ModelName
    version: int
    episode: EpisodeId
    about: EpisodeKind
    actor: str
    note: str = ""

    @property
    def identity(self) -> str:
        return self.episode


class EpisodeResolved(Event):
    """What the episode was about is as before, or another version with another reference serves."""

    type = "meguri.episode-resolved.v1"
    key_field = "model"

    model: ModelName
    version: int
    episode: EpisodeId
    about: EpisodeKind = "drift"
    reason: str

    @property
    def identity(self) -> str:
        return self.episode


class NoticeSent(Event):
    """Somebody was told that an episode began or ended."""

    type = "meguri.notice-sent.v1"
    key_field = "model"

    model: ModelName
    episode: EpisodeId
    moment: Literal["opened", "resolved"]
    target: str
    """Whom: the URL without its secrets."""
    subject: str
    """The first line of the message."""

    @property
    def identity(self) -> str:
        return f"{self.moment}-{self.target}"


class NoticeFailed(Event):
    """Nobody could be told at a target, after all tries; the message is not lost, it is parked as a dead letter."""

    type = "meguri.notice-failed.v1"
    key_field = "model"

    model: ModelName
    episode: EpisodeId
    moment: Literal["opened", "resolved"]
    target: str
    error: str

    @property
    def identity(self) -> str:
        return f"{self.moment}-{self.target}"


class MeasuresRefilled(Event):
    """The table of an evaluator was computed again from the predictions that are kept; what was missing is there now."""

    type = "meguri.measures-refilled.v1"
    key_field = "model"

    model: ModelName
    evaluator: str
    rows: int = Field(ge=0)
    """That the evaluator gave."""
    left_out: int = Field(default=0, ge=0)
    """Of these, those that its writer did not let through: the table has them only if it had them before."""
    written: int = Field(ge=0)
    """Of these, those that the table did not have."""
    first: int
    last: int
    """Stream sequences of the predictions, both included."""
    actor: str


# --- batches --------------------------------------------------------------------------------------------------------


class BatchRequested(Event):
    """Somebody wants all rows of a file predicted, and the predictions in a folder."""

    type = "meguri.batch-requested.v1"
    key_field = "model"

    model: ModelName
    batch: BatchId
    input: str
    """URI of the rows: CSV, JSON Lines, Parquet or Arrow."""
    output: str
    """URI of the folder for the predictions."""
    version: int | None = Field(default=None, ge=1)
    """Who predicts; the champion of the moment when left out."""
    shard_rows: int = Field(default=100_000, ge=1)
    """Rows that are predicted at a time."""
    actor: str

    @property
    def identity(self) -> str:
        return self.batch


class ShardPlanned(Event):
    """A part of a batch is due, with everything that it depends on; any replica can do it, and do it again."""

    type = "meguri.shard-planned.v1"
    key_field = "model"

    model: ModelName
    batch: BatchId
    shard: int = Field(ge=0)
    shards: int = Field(ge=1)
    first: int = Field(ge=0)
    """The first row of the input that belongs to it."""
    rows: int = Field(ge=0)
    input: str
    input_digest: str
    """SHA-256 of the whole input, in hex."""
    output: str
    deployed: Deployed

    @property
    def identity(self) -> str:
        return f"{self.batch}-{self.shard}"


class ShardScored(Event):
    """A part of a batch is predicted and kept."""

    type = "meguri.shard-scored.v1"
    key_field = "model"

    model: ModelName
    batch: BatchId
    shard: int = Field(ge=0)
    shards: int = Field(ge=1)
    rows: int = Field(ge=0)
    uri: str
    digest: str
    """SHA-256 of the file, in hex."""
    replica: str
    seconds: float

    @property
    def identity(self) -> str:
        return f"{self.batch}-{self.shard}"


class BatchCompleted(Event):
    """All rows of a batch are predicted."""

    type = "meguri.batch-completed.v1"
    key_field = "model"

    model: ModelName
    batch: BatchId
    version: int
    run: RunId
    input: str
    input_digest: str
    output: str
    rows: int
    shards: int
    digest: str
    """SHA-256 over the digests of the shards in their order, in hex."""

    @property
    def identity(self) -> str:
        return self.batch


class BatchFailed(Event):
    """A batch ended without its predictions, for a reason that another try would meet again."""

    type = "meguri.batch-failed.v1"
    key_field = "model"

    model: ModelName
    batch: BatchId
    reason: str

    @property
    def identity(self) -> str:
        return self.batch


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
    TrainingPostponed,
    LoopBroken,
    ModelRegistered,
    PromotionRejected,
    ApprovalRequested,
    RolloutChanged,
    ModelLoaded,
    RolloutObserved,
    LabelsArrived,
    QualityMeasured,
    DriftDetected,
    PerformanceDegraded,
    AnomalyDetected,
    EpisodeWorsened,
    EpisodeAcknowledged,
    EpisodeResolved,
    NoticeSent,
    NoticeFailed,
    MeasuresRefilled,
    BatchRequested,
    ShardPlanned,
    ShardScored,
    BatchCompleted,
    BatchFailed,
    MessageParked,
    MessageRedriven,
)
OPENINGS = (DriftDetected, PerformanceDegraded, AnomalyDetected)
"""What begins an episode."""
BY_TYPE: dict[str, type[Event]] = {event.type: event for event in EVENTS}
BY_KIND: dict[str, type[Event]] = {event.kind(): event for event in EVENTS}
