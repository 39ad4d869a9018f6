"""One fit, step by step: read, split, fit, measure, export."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from meguri_chassis.profiles import profile_of
from meguri_contracts.errors import Invalid, PermanentError
from meguri_contracts.spec import Column, ColumnType, Dataset, Estimator, ModelSpec
from meguri_training import estimators, evaluating, exporting, reading, splitting
from meguri_training.evaluating import NotComparable
from meguri_training.fitting import Fitted, Job

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


@dataclass(frozen=True)
class Rows:
    """Rows on one side of the split. `frame` has the champion's features too, as far as the dataset has them."""

    frame: pl.DataFrame
    inputs: estimators.Rows
    target: reading.Target


def fit(job: Job) -> Fitted:
    """Do the job. Raises a PermanentError that says why it cannot be done."""
    began = time.perf_counter()
    spec = job.spec
    model = estimators.build(spec.estimator, spec.task, spec.validation.seed)
    with threadpool_limits(1):  # sums taken by several threads differ in the last digits
        train, holdout = _split(job)
        champion = _measure_champion(job, holdout)
        with _refusals_of(spec.estimator.name):
            fit_began = time.perf_counter()
            model.fit(train.inputs, train.target)
            fit_seconds = time.perf_counter() - fit_began
            answers = evaluating.ask(model, holdout.inputs, spec.task)
            candidate = evaluating.measure(holdout.target, answers)
        exported = exporting.export(model, spec.feature_names, holdout.inputs, holdout.target, answers)
        skops = exporting.dump(model)
    return Fitted(
        candidate=candidate,
        champion=champion,
        train_rows=len(train.target),
        holdout_rows=len(holdout.target),
        onnx=exported.onnx,
        skops=skops,
        profile=profile_of(spec.feature_names, train.inputs).to_json(),
        signature=exported.signature,
        parity=exported.parity,
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


def _split(job: Job) -> tuple[Rows, Rows]:
    """Return the rows to train on and those held out, each in an order that does not depend on that of their arrival."""
    spec, features, seed = job.spec, job.spec.feature_names, job.spec.validation.seed
    champions = job.champion_signature.features if job.champion_signature else ()
    frame = reading.read(job.table_uri, job.dataset_version, (*features, spec.target), optional=champions)
    inputs = estimators.as_input(spec.estimator, reading.numbers(frame, features))
    target = _target(spec, frame)
    hashes = splitting.row_hashes(frame, features, seed)
    order = np.lexsort((splitting.row_hashes(frame, [spec.target], seed), hashes))
    held_out = splitting.held_out(hashes, spec.validation.holdout)[order]
    train, holdout = (Rows(frame[at], inputs[at], target[at]) for at in (order[~held_out], order[held_out]))
    _check(spec, train.target, holdout.target)
    return train, holdout


def _target(spec: ModelSpec, frame: pl.DataFrame) -> reading.Target:
    if spec.task == "classification":
        return reading.classes(frame, spec.target)
    return reading.numbers(frame, [spec.target])[:, 0]


def _check(spec: ModelSpec, train: NDArray[Any], holdout: NDArray[Any]) -> None:
    if len(train) < MIN_TRAIN_ROWS or len(holdout) < MIN_HOLDOUT_ROWS:
        raise TooFewRows(len(train), len(holdout))
    if spec.task == "classification" and (train == train[0]).all():
        raise OneClassOnly(spec.target, train.tolist()[0])


def _measure_champion(job: Job, holdout: Rows) -> dict[str, float] | None:
    if job.champion_onnx is None or job.champion_signature is None:
        return None
    features = job.champion_signature.features
    if gone := [name for name in features if name not in holdout.frame.columns]:
        raise NotComparable(
            f"the champion needs {gone[0]!r}, which the dataset no longer has, so no candidate can be compared with it"
        )
    session = evaluating.open_onnx(job.champion_onnx)
    rows = reading.numbers(holdout.frame, features)
    return evaluating.measure(holdout.target, evaluating.ask_onnx(session, rows, job.spec.task))


@contextmanager
def _refusals_of(estimator: str) -> Iterator[None]:
    """Say what scikit-learn says, whatever it raises: it saw values of a spec, and would see the same again."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise NotFitted(estimator, error) from error
