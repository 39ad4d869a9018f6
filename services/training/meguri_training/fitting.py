"""One fit as the service sees it: a job goes to a worker process, files and measures come back.

The service imports this module and pickles what stands here, so it stays light: scikit-learn and the rest (seconds to
import, 200 MB) are in `steps.py`, which only a worker opens.
"""

from dataclasses import dataclass

from meguri_contracts.errors import PermanentError
from meguri_contracts.events import Engine, Signature
from meguri_contracts.spec import ModelSpec


class CannotFit(PermanentError):
    """The job would fail again; the message says why. The one error of a worker, so that it can be pickled."""


@dataclass(frozen=True)
class Champion:
    """Whom the candidate is compared with: the file that its engine loads."""

    engine: Engine
    file: bytes
    signature: Signature


@dataclass(frozen=True)
class Job:
    """Everything that a fit depends on."""

    run: str
    spec: ModelSpec
    table_uri: str
    dataset_version: int
    champion: Champion | None = None


@dataclass(frozen=True)
class Fitted:
    """What came of a job. `candidate` and `champion` are metrics on the same hold-out rows; times are in seconds."""

    candidate: dict[str, float]
    champion: dict[str, float] | None
    train_rows: int
    holdout_rows: int
    onnx: bytes | None
    """None when scikit-learn serves the model."""
    skops: bytes
    profile: bytes
    """JSON of the reference profile: the rows trained on, as far as they are numbers."""
    signature: Signature
    parity: float
    """Largest difference between what is served and scikit-learn on the hold-out."""
    engine: Engine
    engine_reason: str
    environment: dict[str, str]
    seconds: float
    """From reading to the last file."""
    fit_seconds: float
    """Of these, the call of `fit` alone."""


def fit(job: Job) -> Fitted:
    """Read, split, fit, measure and export. The same job gives the same metrics, ONNX bytes and profile.

    Raises CannotFit.
    """
    from meguri_training import steps  # noqa: PLC0415 - see the top

    try:
        return steps.fit(job)
    except PermanentError as error:
        raise CannotFit(str(error)) from error


def warm_up() -> None:
    """Import everything and do a small fit end to end, so that the next one meets nothing for the first time."""
    from meguri_training import steps  # noqa: PLC0415 - see the top

    steps.fit_something_small()
