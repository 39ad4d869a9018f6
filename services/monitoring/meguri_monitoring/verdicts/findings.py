"""What was found when a window was held against its reference: what moved, and who moved it."""

from dataclasses import dataclass

from meguri_contracts.spec import EpisodeKind


@dataclass(frozen=True)
class Finding:
    """One subject, a feature or a column of the answer, held against its reference in one respect."""

    about: EpisodeKind
    subject: str
    moved: bool
    score: float
    """The effect, as the method has it: what is held against `threshold`."""
    threshold: float
    method: str
    """`ks or wasserstein`, `jensen-shannon`, `psi`, `share` and so on."""
    p_value: float | None = None
    """Not divided by the number of features; None for a method without a test."""
    ks: float | None = None
    wasserstein: float | None = None
    """In standard deviations of the reference; None for what is no number."""


@dataclass(frozen=True)
class Culprit:
    """Who contributes most to what moved in one respect."""

    producer: str
    share: float
    """Of the distance, what disappears without it."""
    samples: tuple[str, ...] = ()
    """Prediction ids of its latest rows."""
    traces: tuple[str, ...] = ()
    """Their trace ids."""
