"""The model spec: one YAML page that says what to train on what, when, and what is good enough to serve."""

import re
from collections import Counter
from collections.abc import Set
from enum import StrEnum
from functools import cached_property
from math import prod
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from meguri_contracts.gates import Gate, parse_gate
from meguri_contracts.names import NAME_PATTERN, DatasetName, ModelName

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
MAX_COLUMNS = 10_000
Task = Literal["classification", "regression", "outliers"]
EpisodeKind = Literal[
    "drift", "prediction", "missing", "categories", "schema", "volume", "silence", "performance", "measure", "evaluator"
]
"""What an episode is about: the inputs' or the answers' distribution, the share of missing values, categories never seen in
training, columns that do not fit, more or fewer requests than before, none at all, quality on labels, a business number."""
Action = Literal["ignore", "notify", "retrain", "rollback"]
"""What follows from an episode: nothing, not even an alert; an alert; an alert and a new model; an alert and the one before."""
RESERVED = "_"
"""Column names with this prefix belong to ingest: `_event`, `_producer`, `_arrived`."""


PREDICTION_COLUMNS = frozenset(
    (
        "prediction_id",
        "time",
        "model",
        "version",
        "producer",
        "trace_id",
        "sequence",
        "label",
        "probability",
        "prediction",
    )
)
"""What is kept of a prediction beside its features, which therefore may not be called so."""
SCORE = "score"
"""Kept too, beside `label`, of predictions about outliers, whose features may not be called so either."""
PREDICTION_DETAILS = ("_entity", "_role", "_latency")
"""Kept of each prediction too, after `trace_id`: who or what it is about (text or null), what its version was in the traffic
plan (champion, canary, arm, shadow), and the microseconds from the request's head to its answer. A row of a shadow has the
prediction id of the answer that was given in its place. Messages of older replicas do not have these columns."""


class ColumnType(StrEnum):
    number = "number"
    integer = "integer"
    string = "string"
    boolean = "boolean"
    timestamp = "timestamp"


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _without(dumped: dict[str, Any], spec: _Spec, known: Set[str]) -> dict[str, Any]:
    """Leave out the fields that say nothing but the default, those that older replicas have always known aside."""
    usual = {name: field.get_default() for name, field in type(spec).model_fields.items() if name not in known}
    silent = {name for name, default in usual.items() if getattr(spec, name) == default}
    return {name: value for name, value in dumped.items() if name not in silent}


class Column(_Spec):
    """Type and checks of one column. A row that breaks a check is quarantined with the reason."""

    type: ColumnType
    nullable: bool = False
    min: float | None = None
    max: float | None = None
    values: tuple[int | float | str | bool, ...] | None = None
    """The only values allowed, when given."""
    unique: bool = False
    """Whether a value may stand only once in a batch."""

    @model_validator(mode="after")
    def _range_needs_numbers(self) -> Self:
        if (self.min is not None or self.max is not None) and self.type not in (ColumnType.number, ColumnType.integer):
            raise ValueError(f"min and max need a number or integer column, not {self.type}")
        return self


class Dataset(_Spec):
    """Columns that arrive. `pixel_{0..63}` stands for 64 columns."""

    name: DatasetName
    columns: dict[str, Column] = Field(min_length=1)
    max_bad_share: float = Field(default=0.5, ge=0, le=1)
    """A batch with a larger share of bad rows is rejected whole; up to it, bad rows are quarantined."""

    @field_validator("columns", mode="after")
    @classmethod
    def _expand_ranges(cls, columns: dict[str, Column]) -> dict[str, Column]:
        expanded = {name: column for pattern, column in columns.items() for name in expand(pattern)}
        if len(expanded) > MAX_COLUMNS:
            raise ValueError(f"{len(expanded)} columns, at most {MAX_COLUMNS} are allowed")
        if reserved := sorted(n for n in expanded if n.startswith(RESERVED) or not n):
            raise ValueError(f"column names may not be empty or begin with '{RESERVED}': {reserved[0]!r}")
        return expanded


class Estimator(_Spec):
    """A scikit-learn estimator from the allow-list of training, with its parameters."""

    name: str = Field(examples=["RandomForestClassifier"])
    params: dict[str, Any] = {}
    scale: bool = False
    """Whether a StandardScaler goes first."""


class Validation(_Spec):
    holdout: float = Field(default=0.25, gt=0, lt=1)
    """Share of the rows kept out of training, chosen by row hash: a row stays on its side for ever."""
    seed: int = Field(default=0, ge=0, lt=2**32)


class Retrain(_Spec):
    """When to train again, beside a request."""

    rows: int | None = Field(default=1, gt=0)
    """New rows since the last run that are enough for a run; null: new rows alone are no reason."""
    first_rows: int = Field(default=1, gt=0)
    """Rows that the dataset needs before the first run."""
    drift: bool = True
    """Whether an episode that is to retrain makes `fresh_rows` new rows enough."""
    fresh_rows: int = Field(default=1, gt=0)
    """New rows since the last run that are enough after such an episode."""

    @model_serializer(mode="wrap")
    def _without_news(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without(dump(self), self, _KNOWN_TO_RETRAIN)


class Method(_Spec):
    """How one feature is judged instead of the rule: one statistic and the value above which it has drifted."""

    method: Literal["ks", "wasserstein", "psi", "jensen-shannon"]
    """Kolmogorov-Smirnov distance; Wasserstein distance in standard deviations of the reference (both of numbers); population
    stability index; Jensen-Shannon distance (natural logarithm), on the bins or categories of the reference."""
    threshold: float = Field(default=0.1, gt=0)


class Performance(_Spec):
    """When the quality on labels has become worse."""

    delta: float = Field(default=0.002, gt=0, lt=1)
    """Of ADWIN, on the errors in the order in which their labels arrive: smaller is slower and surer."""
    drop: float = Field(default=0.05, ge=0)
    """Least loss: of accuracy, or as a share of the mean absolute error before."""
    min_labels: int = Field(default=100, ge=20)
    """Labelled predictions of a version before anything is said."""


class Watch(_Spec):
    """An evaluator and which of its numbers are watched."""

    evaluator: str = Field(pattern=NAME_PATTERN)
    """Its name among the installed ones (entry points of group `meguri.evaluators`)."""
    numbers: tuple[str, ...] = ()
    """Columns of its table that are watched; none: the table is only kept."""
    baseline_rows: int = Field(default=200, ge=20)
    """Rows since the version is champion that are the reference."""
    window_rows: int = Field(default=50, ge=20)
    """Rows that make a window."""


class Monitor(_Spec):
    """When live rows no longer look like the reference. The defaults stay quiet while means wander a little."""

    window_rows: int = Field(default=500, ge=50, le=1_000_000)
    """Predictions that make a window. Smaller reacts sooner and sees only larger shifts."""
    min_rows: int = Field(default=200, ge=20)
    """Rows needed on both sides before a verdict is given."""
    p_value: float = Field(default=0.001, gt=0, lt=1)
    """Significance of the Kolmogorov-Smirnov test, divided by the number of features."""
    distance: float = Field(default=0.1, ge=0)
    """Least effect: KS distance, or Wasserstein distance in standard deviations of the reference; of categories
    Jensen-Shannon distance."""
    windows: int = Field(default=2, ge=1, le=100)
    """Windows in a row that must agree before an episode begins or ends."""
    window_seconds: float | None = Field(default=None, ge=1, le=31 * 86400)
    """When given, windows are as long as this, by the time of the predictions, however many rows they have."""
    late_seconds: float = Field(default=10, ge=0, le=86400)
    """How much later than a window's end its predictions may come; what comes later is counted as late, and kept."""
    rule: Literal["meguri", "evidently"] = "meguri"
    """Significance and effect together, or the verdicts that Evidently gives by default."""
    share: float = Field(default=0.5, gt=0, le=1)
    """Rule evidently: the share of the features that must have drifted."""
    ignore: tuple[str, ...] = ()
    """Features that are not judged; ranges allowed."""
    methods: dict[str, Method] = {}
    """By feature: how it is judged instead."""
    prediction: bool = True
    """Whether the distribution of the answers is judged like a feature."""
    missing: float | None = Field(default=0.05, gt=0, le=1)
    """By how much the share of missing values must differ from the reference's; null: not watched."""
    categories: float | None = Field(default=0.01, gt=0, le=1)
    """Share of rows with categories that the reference does not have; null: not watched."""
    volume: float | None = Field(default=None, gt=1)
    """How many times more or fewer requests than in the windows before are an episode; null: not watched."""
    silence: float | None = Field(default=None, ge=1, le=31 * 86400)
    """Seconds without any prediction that are an episode; null: not watched."""
    performance: Performance | None = Performance()
    """null: not watched."""
    slices: tuple[str, ...] = ()
    """Features by whose values quality is told apart; numbers by the quarters of the reference."""
    evaluators: tuple[Watch, ...] = ()
    actions: dict[EpisodeKind, Action] = {}
    """By kind of episode; drift and performance retrain, all others notify, where nothing else is said."""
    cooldown: float = Field(default=0, ge=0)
    """Seconds after an episode that retrained or rolled back during which others only notify."""

    @model_validator(mode="after")
    def _window_can_be_judged(self) -> Self:
        if self.window_seconds is None and self.window_rows < self.min_rows:
            raise ValueError(
                f"window_rows {self.window_rows} is below min_rows {self.min_rows}: no window could be judged"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_news(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without(dump(self), self, _KNOWN_TO_MONITOR)

    def action(self, kind: EpisodeKind) -> Action:
        """What follows from an episode of a kind."""
        return self.actions.get(kind, "retrain" if kind in ("drift", "performance") else "notify")


_KNOWN_TO_MONITOR = frozenset({"window_rows", "min_rows", "p_value", "distance", "windows"})
_KNOWN_TO_RETRAIN = frozenset({"rows", "first_rows", "drift"})


NOTIFY_PREFIX = "NOTIFY_"
"""Of variables that a URL may name: whoever writes a spec must not get at the other secrets of a service."""
NOTIFY_VARIABLE = re.compile(r"\$\{([^{}]*)\}")
"""What stands in a URL for a variable."""


class Notify(_Spec):
    """Who is told of episodes: one message when one begins, one when it ends."""

    urls: tuple[str, ...] = ()
    """Of Apprise: mailto://, slack://, workflows:// (Teams), json:// and the rest. `${NOTIFY_NAME}` stands for a variable of
    monitoring's environment, so that no password need stand in a spec; others than `NOTIFY_` ones may not be named."""
    language: Literal["en", "ja"] = "en"


class CanaryPolicy(_Spec):
    """How a candidate takes over traffic, and when it is taken back."""

    steps: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(default=(0.05, 0.25, 0.5), min_length=1)
    """Shares of the requests that it answers, one after the other; after the last it is champion."""
    requests: int = Field(default=500, ge=1)
    """Requests that the candidate must have been asked before the next step."""
    seconds: float = Field(default=0, ge=0)
    """Least time of each step."""
    max_errors: float = Field(default=0.01, ge=0, le=1)
    """By how much its share of requests without an answer may be above the champion's."""
    max_latency: float | None = Field(default=3, gt=1)
    """How many times as long as the champion's its 95th percentile of latency may be; null: any."""
    max_quality_loss: float = Field(default=0.02, ge=0)
    """By how much its mean score on labelled predictions may be below the champion's, as far as labels arrive; a score is
    1 or 0 for right or wrong, or minus the absolute error in standard deviations of the champion's errors."""
    min_requests: int = Field(default=50, ge=1)
    """Requests, or labels, that the candidate needs before it is taken back for any of these."""

    @model_validator(mode="after")
    def _steps_rise(self) -> Self:
        if any(later <= earlier for earlier, later in zip(self.steps, self.steps[1:], strict=False)):
            raise ValueError(f"canary steps must rise: {self.steps}")
        return self


class TrialPolicy(_Spec):
    """When an A/B test ends. It may be looked at all the time: the test is valid at every moment."""

    alpha: float = Field(default=0.05, gt=0, lt=1)
    """Probability of naming a winner when there is no difference."""
    min_labels: int = Field(default=100, ge=20)
    """Labelled predictions that every arm needs before a winner is named."""
    max_labels: int = Field(default=20_000, ge=20)
    """Labelled predictions of every arm after which the answer is: none is better, the champion stays."""


class Rollout(_Spec):
    """How a version whose gate holds gets its traffic."""

    strategy: Literal["direct", "canary", "shadow"] = "direct"
    """At once, step by step, or beside the champion, in place of shadows before it, until a person promotes it. The first
    version of a model is always champion at once."""
    canary: CanaryPolicy = CanaryPolicy()
    trial: TrialPolicy = TrialPolicy()


class PredictionLog(_Spec):
    """Which predictions are kept for monitoring: `all`, `none`, or `{sampled: 0.1}`; with `durable: true` before the answer."""

    sampled: float = Field(default=1, ge=0, le=1)
    """Share of the requests whose predictions are kept: 1 is all, 0 none."""
    durable: bool = False
    """Whether an answer waits until its prediction is on the broker's disk; when it cannot get there, the answer is 503."""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        return {"all": {"sampled": 1}, "none": {"sampled": 0}}.get(given, given) if isinstance(given, str) else given


class ModelSpec(_Spec):
    """Everything meguri needs to know to keep one model trained, judged, served and watched."""

    model: ModelName
    task: Task
    dataset: Dataset
    features: tuple[str, ...] | None = None
    """Columns that the model sees, ranges allowed; all but the target when left out. Strings are categories: one that was not
    there in training is like none, and a missing one is the empty text."""
    target: str | None = None
    """What is predicted. Of outliers it may be left out: it is not learned from and only says how well they are found, as a
    boolean or integer column with true or 1 for outliers."""
    estimator: Estimator
    validation: Validation = Validation()
    gate: Gate
    retrain: Retrain = Retrain()
    rollout: Rollout = Rollout()
    log: PredictionLog = PredictionLog()
    monitor: Monitor = Monitor()
    notify: Notify = Notify()

    @model_validator(mode="after")
    def _target_fits(self) -> Self:
        if self.target is None:
            if self.task != "outliers":
                raise ValueError(f"target: a {self.task} needs one")
            return self
        column = self.dataset.columns.get(self.target)
        if column is None:
            raise ValueError(f"{self.target!r} is not a column of dataset {self.dataset.name!r}")
        if self.target in self.feature_names:
            raise ValueError(f"the target {self.target!r} is also a feature")
        if self.task == "outliers" and column.type not in (ColumnType.boolean, ColumnType.integer):
            raise ValueError(
                f"the target {self.target!r} of outliers must be a boolean or an integer, not {column.type}"
            )
        return self

    @model_validator(mode="after")
    def _features_fit(self) -> Self:
        columns, names = self.dataset.columns, self.feature_names
        if not names:
            raise ValueError("a model needs at least one feature")
        if missing := [name for name in names if name not in columns]:
            raise ValueError(f"{missing[0]!r} is not a column of dataset {self.dataset.name!r}")
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise ValueError(f"feature {twice[0]!r} is named twice")
        kept = PREDICTION_COLUMNS | ({SCORE} if self.task == "outliers" else set())
        if taken := sorted(kept & set(names)):
            raise ValueError(f"feature {taken[0]!r} is called like a column that every prediction has; rename it")
        if unusable := [name for name in names if columns[name].type is ColumnType.timestamp]:
            raise ValueError(f"feature {unusable[0]!r}: timestamps cannot be features")
        return self

    @model_validator(mode="after")
    def _monitor_names_features(self) -> Self:
        named = {
            "ignore": [name for pattern in self.monitor.ignore for name in expand(pattern)],
            "methods": list(self.monitor.methods),
            "slices": list(self.monitor.slices),
        }
        features = set(self.feature_names)
        for field, names in named.items():
            if unknown := [name for name in names if name not in features]:
                raise ValueError(f"monitor.{field}: {unknown[0]!r} is no feature of the model")
        for name, method in self.monitor.methods.items():
            kind = self.dataset.columns[name].type
            if method.method in ("ks", "wasserstein") and kind in (ColumnType.string, ColumnType.boolean):
                raise ValueError(f"monitor.methods: {method.method} is for numbers, and {name!r} is a {kind}")
        return self

    @model_validator(mode="after")
    def _gate_names_metrics(self) -> Self:
        if unknown := [m for rule in parse_gate(self.gate) for m in rule.metrics if m not in self.metrics]:
            what = "outliers" if self.task == "outliers" else f"a {self.task}"
            what += "" if self.target else " without a target"
            raise ValueError(f"gate: {unknown[0]!r} is no metric of {what}; known are {', '.join(self.metrics)}")
        return self

    @model_serializer(mode="wrap")
    def _without_news(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What the first release did not know is left out where it says nothing: its replicas refuse unknown fields, and the
        digest of a spec stays what it was."""
        return _without(dump(self), self, set(type(self).model_fields) - {"rollout", "log", "notify"})

    @cached_property
    def feature_names(self) -> tuple[str, ...]:
        """The features in their order, ranges expanded."""
        if self.features is None:
            return tuple(name for name in self.dataset.columns if name != self.target)
        return tuple(name for pattern in self.features for name in expand(pattern))

    @property
    def metrics(self) -> tuple[str, ...]:
        """What training measures on the hold-out, and the gate may therefore name."""
        return METRICS[self.task] + (TARGET_METRICS if self.task == "outliers" and self.target else ())


METRICS: dict[Task, tuple[str, ...]] = {
    "classification": ("accuracy", "balanced_accuracy", "f1_macro", "log_loss"),
    "regression": ("mae", "rmse", "r2"),
    "outliers": ("outlier_share",),
}
TARGET_METRICS = ("roc_auc", "average_precision")
"""Of outliers, when a target says which rows are some."""


def expand(pattern: str) -> list[str]:
    """Return the names that a pattern stands for: `p_{0..2}` is p_0, p_1, p_2; ranges may be several."""
    before, *parts = _RANGE.split(pattern)
    ranges = [(int(first), int(last) + 1, after) for first, last, after in zip(*[iter(parts)] * 3, strict=True)]
    counts = [end - first for first, end, _ in ranges]
    if min(counts, default=1) < 1 or prod(counts) > MAX_COLUMNS:
        raise ValueError(f"{pattern!r}: ranges must rise and stand for at most {MAX_COLUMNS} names")
    names = [before]
    for first, end, after in ranges:
        names = [f"{name}{i}{after}" for name in names for i in range(first, end)]
    return names
