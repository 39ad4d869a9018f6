"""Episodes of drift of the champion: one event when one begins, one when it ends, nothing in between.

Windows of versions that answer beside it are judged too, but what they saw is a part of its requests: they say nothing.
`decide` says what follows from the latest windows, `resolve` what follows from another champion, `evolve` is the only
place where an event changes what is known.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from meguri_contracts.events import DriftDetected, EpisodeResolved, Event, RolloutChanged
from meguri_contracts.names import derived_id
from meguri_contracts.spec import Monitor
from meguri_monitoring.judging import NAMED, Judged


@dataclass(frozen=True)
class Episode:
    """Drift that has begun and not ended."""

    id: str
    version: int
    feature: str
    producer: str


@dataclass(frozen=True)
class State:
    """What is known of a model. `champion` is the version that serves."""

    model: str
    champion: int | None = None
    episode: Episode | None = None
    rollout: int = 0
    """Sequence in the log of the rollout that made it champion. Windows belong to one such rollout: a version that comes
    back does not count on from where it was taken out of service. Those of versions beside it belong to it, too."""
    hops: int = 0
    """Reactions that lie between that rollout and what came from outside."""


def decide(state: State, windows: Sequence[Judged], rule: Monitor) -> list[Event]:
    """Say what the last of `windows`, oldest first, begins or ends.

    An episode begins when the last `rule.windows` judged windows of the champion all moved, and ends when they are all
    quiet. Windows without a verdict are passed over, windows of other versions say nothing.
    """
    if not windows or not windows[-1].judged:
        return []
    running = [one for one in windows if one.judged and one.version == state.champion][-rule.windows :]
    if len(running) < rule.windows or running[-1] is not windows[-1]:
        return []
    if state.episode is None and all(one.moved("drift") for one in running):
        return [_begun(state.model, running[-1])]
    if state.episode and state.episode.version == state.champion and not any(one.moved("drift") for one in running):
        return [_ended(state.model, state.episode, f"like the reference again for {rule.windows} windows in a row")]
    return []


def resolve(state: State, rollout: RolloutChanged) -> list[Event]:
    """End the episode of a version that no longer serves."""
    serves = rollout.plan.champion.version
    if state.episode and state.episode.version != serves:
        return [_ended(state.model, state.episode, f"version {serves} serves")]
    return []


def evolve(state: State, event: Event, sequence: int = 0, hops: int = 0) -> State:
    """Return what is known after an event; `sequence` and `hops` are those of its message."""
    match event:
        case RolloutChanged(plan=plan) if plan.champion.version == state.champion:
            return state
        case RolloutChanged(plan=plan):
            return replace(state, champion=plan.champion.version, rollout=sequence, hops=hops)
        case DriftDetected(episode=id_, version=version, feature=feature, producer=producer):
            return replace(state, episode=Episode(id_, version, feature, producer))
        case EpisodeResolved(episode=id_) if state.episode and state.episode.id == id_:
            return replace(state, episode=None)
        case _:
            return state


def _begun(model: str, last: Judged) -> DriftDetected:
    moved, window, culprit = last.moved("drift"), last.window, last.culprits["drift"]
    worst = moved[0]
    return DriftDetected(
        model=model,
        version=last.version,
        episode=derived_id(model, str(last.version), str(window.first), str(window.last), str(last.number)),
        feature=worst.subject,
        producer=culprit.producer,
        share=culprit.share,
        distance=worst.wasserstein or 0.0,
        ks=worst.ks or 0.0,
        p_value=worst.p_value or 0.0,
        drifted=tuple(one.subject for one in moved[:NAMED]),
        window=window,
        samples=culprit.samples,
        traces=culprit.traces,
    )


def _ended(model: str, episode: Episode, reason: str) -> EpisodeResolved:
    return EpisodeResolved(model=model, version=episode.version, episode=episode.id, reason=reason)
