"""One fit, step by step: read, split, fit, measure, export."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from meguri_chassis.profiles import Profile, profile_of
from meguri_contracts.errors import Invalid, PermanentError
from meguri_contracts.events import Signature, Tensor
from meguri_contracts.spec import Column, ColumnType, Dataset, Estimator, ModelSpec
from meguri_training import estimators, evaluating, exporting, inputs, reading, splitting
from meguri_training.evaluating import NotComparable
from meguri_training.exporting import Exported
from meguri_training.fitting import Champion, Fitted, Job

MIN_TRAIN_ROWS = 10
MIN_HOLDOUT_ROWS = 5


class TooFewRows(PermanentError):
    def __init__(self, train: int, holdout: int) -> None:
        super().__init__(
            f"{train} rows to train on and {holdout} held out; at least {MIN_TRAIN_ROWS} and {MIN_HOLDOUT_ROWS} are needed"
        )


class OneClassOnly(PermanentError):
    def __init__(self, column: str, label: object) -> None:
        super().__init__(f"every row to train on has {column} = {label!r}; a classifier needs at least two classes")


class NotFitted(Invalid):
    def __init__(self, estimator: str, error: Exception) -> None:
        super().__init__(f"{estimator} cannot be fitted with these parameters on these rows: {error}")


class OneKindOnly(PermanentError):
    def __init__(self, column: str, label: object) -> None:
        super().__init__(
            f"every row held out has {column} = {label!r}; how well outliers are found is measured on both kinds"
        )


@dataclass(frozen=True)
class Rows:
    """Rows on one side of the split. `frame` has the champion's features too, as far as the dataset has them."""

    frame: pl.DataFrame
    inputs: inputs.Rows
    target: reading.Target | None


def fit(job: Job) -> Fitted:
    """Do the job. Raises a PermanentError that says why it cannot be done."""
    began = time.perf_counter()
    spec, tensors = job.spec, inputs.tensors_of(job.spec)
    model = estimators.build(spec.estimator, spec.task, spec.validation.seed, inputs.are_texts(tensors))
    with threadpool_limits(1):  # sums taken by several threads differ in the last digits
        train, holdout = _split(job, tensors)
        champion = _measure_champion(job.champion, spec, holdout) if job.champion else None
        with _refusals_of(spec.estimator.name):
            fit_began = time.perf_counter()
            _fit(model, spec, train)
            fit_seconds = time.perf_counter() - fit_began
            answers = evaluating.ask(model, holdout.inputs, spec.task)
            candidate = evaluating.measure(holdout.target, answers)
        single = estimators.is_single(spec.estimator)
        exported = exporting.export(model, tensors, holdout.inputs, holdout.target, spec.task, single)
    return Fitted(
        candidate=candidate,
        champion=champion,
        train_rows=len(train.inputs),
        holdout_rows=len(holdout.inputs),
        onnx=exported.onnx,
        skops=exported.skops,
        profile=_profile(spec, tensors, train, answers).to_json(),
        signature=_signature(spec, tensors, exported, train, answers.classes),
        parity=exported.parity,
        engine=exported.engine,
        engine_reason=exported.reason,
        environment=exporting.environment(),
        seconds=time.perf_counter() - began,
        fit_seconds=fit_seconds,
    )


def fit_something_small() -> None:
    spec = ModelSpec(
        model="something-small",
        task="classification",
        dataset=Dataset(
            name="something-small",
            columns={"x": Column(type=ColumnType.number), "y": Column(type=ColumnType.integer)},
        ),
        target="y",
        estimator=Estimator(name="LogisticRegression", scale=True),
        gate="accuracy > 0",
    )
    with TemporaryDirectory() as folder:
        pl.DataFrame({"x": [n / 8 for n in range(64)], "y": [n % 2 for n in range(64)]}).write_delta(folder)
        fit(Job(run="something-small", spec=spec, table_uri=folder, dataset_version=0))


def _split(job: Job, tensors: Sequence[Tensor]) -> tuple[Rows, Rows]:
    """Return the rows to train on and those held out, each in an order that does not depend on that of their arrival."""
    spec, features, seed = job.spec, job.spec.feature_names, job.spec.validation.seed
    named = [spec.target] if spec.target else []
    champions = job.champion.signature.features if job.champion else ()
    frame = reading.read(job.table_uri, job.dataset_version, (*features, *named), optional=champions)
    rows = inputs.rows(frame, features, tensors)
    target = _target(spec, frame)
    hashes = splitting.row_hashes(frame, features, seed)
    order = np.lexsort((splitting.row_hashes(frame, named, seed), hashes))
    held_out = splitting.held_out(hashes, spec.validation.holdout)[order]
    train, holdout = (
        Rows(frame[at], rows[at], None if target is None else target[at]) for at in (order[~held_out], order[held_out])
    )
    _check(spec, train, holdout)
    return train, holdout


def _target(spec: ModelSpec, frame: pl.DataFrame) -> reading.Target | None:
    if spec.target is None:
        return None
    match spec.task:
        case "classification":
            return reading.classes(frame, spec.target)
        case "regression":
            return reading.numbers(frame, [spec.target])[:, 0]
        case "outliers":
            return reading.flags(frame, spec.target)


def _check(spec: ModelSpec, train: Rows, holdout: Rows) -> None:
    if len(train.inputs) < MIN_TRAIN_ROWS or len(holdout.inputs) < MIN_HOLDOUT_ROWS:
        raise TooFewRows(len(train.inputs), len(holdout.inputs))
    if spec.target is None:
        return
    if spec.task == "classification" and (only := _only(train.target)) is not None:
        raise OneClassOnly(spec.target, only)
    if spec.task == "outliers" and (only := _only(holdout.target)) is not None:
        raise OneKindOnly(spec.target, only)


def _only(labels: reading.Target | None) -> object:
    """The label that all have; None when there are several."""
    return None if labels is None or (labels != labels[0]).any() else labels.tolist()[0]


def _fit(model: Any, spec: ModelSpec, train: Rows) -> None:
    """Outliers are looked for, not learned from a target."""
    if spec.task == "outliers":
        model.fit(train.inputs)
    else:
        model.fit(train.inputs, train.target)


def _measure_champion(champion: Champion, spec: ModelSpec, holdout: Rows) -> dict[str, float]:
    signature = champion.signature
    if gone := [name for name in signature.features if name not in holdout.frame.columns]:
        raise NotComparable(
            f"the champion needs {gone[0]!r}, which the dataset no longer has, so no candidate can be compared with it"
        )
    evaluating.check_outputs([output.name for output in signature.outputs], spec.task)
    tensors = inputs.tensors_in(signature)
    rows = inputs.rows(holdout.frame, signature.features, tensors)
    if champion.engine == "onnx":
        session = evaluating.open_onnx(champion.file)
        answers = evaluating.ask_onnx(session, inputs.feeds(rows, tensors), spec.task)
    else:
        answers = evaluating.ask(exporting.load(champion.file), rows, spec.task)
    return evaluating.measure(holdout.target, answers)


def _signature(
    spec: ModelSpec, tensors: tuple[Tensor, ...], exported: Exported, train: Rows, classes: NDArray[Any] | None
) -> Signature:
    return Signature(
        features=spec.feature_names,
        input=tensors[0],
        inputs=tensors if any(inputs.are_texts(tensors)) else (),
        outputs=exported.outputs,
        example=inputs.example(train.inputs, tensors),
        classes=() if classes is None else tuple(classes.tolist()),
    )


def _profile(spec: ModelSpec, tensors: tuple[Tensor, ...], train: Rows, answers: evaluating.Answers) -> Profile:
    """Return what monitoring compares with: features as they were trained on, answers as they are to rows never seen."""
    names, numbers = inputs.numeric(train.inputs, spec.feature_names, tensors)
    categories = inputs.categories(train.inputs, spec.feature_names, tensors)
    return profile_of(names, numbers, categories, evaluating.columns(answers))


@contextmanager
def _refusals_of(estimator: str) -> Iterator[None]:
    """Say what scikit-learn says, whatever it raises: it saw values of a spec, and would see the same again."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise NotFitted(estimator, error) from error
