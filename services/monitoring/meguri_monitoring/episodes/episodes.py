"""Episodes, one per model and kind: an event when one begins, one when it ends, and in between one only when it has become
twice as bad or a person has seen it.

They are about the champion. Windows of versions that answer beside it are judged too, but what they saw is a part of its
requests: they say nothing. Only the quality of their answers is their own: of performance each version that answers has an
episode of its own. `decide`, `decide_look`, `resolve`, `unwatched` and `acknowledge` say what follows, `evolve` is the only
place where an event changes what is known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from meguri_contracts.errors import Conflict
from meguri_contracts.events import (
    AnomalyDetected,
    DriftDetected,
    EpisodeAcknowledged,
    EpisodeResolved,
    EpisodeWorsened,
    Event,
    PerformanceDegraded,
    Plan,
    Role,
    RolloutChanged,
)
from meguri_contracts.names import derived_id
from meguri_contracts.spec import Action, EpisodeKind, ModelSpec, Monitor
from meguri_monitoring.episodes import looks, sentences
from meguri_monitoring.episodes.looks import INPUTS, OF_WINDOWS, Look, Opening
from meguri_monitoring.verdicts.judging import Judged

__all__ = ["Look"]

MUCH_WORSE = 2.0
"""How many times the score that was last said an episode must have reached to be said again."""
REACTIONS = ("retrain", "rollback")
"""Actions after which others cool down."""
CHANGED = "the spec no longer asks for this to be watched"


@dataclass(frozen=True)
class Episode:
    """Something that has begun and not ended."""

    id: str
    version: int
    about: EpisodeKind
    subject: str
    producer: str
    score: float
    """How bad it was when that was last said."""
    acknowledged: bool = False
    role: Role = "champion"
    """What the version was when it began."""


@dataclass(frozen=True)
class State:
    """What is known of a model. `champion` is the version that serves."""

    model: str
    champion: int | None = None
    rollout: int = 0
    """Sequence in the log of the rollout that made it champion. Windows belong to one such rollout: a version that comes
    back does not count on from where it was taken out of service. Those of versions beside it belong to it, too."""
    hops: int = 0
    """Reactions that lie between that rollout and what came from outside."""
    challengers: Mapping[int, Role] = field(default_factory=dict)
    """Versions that answer beside the champion, and what they are."""
    episodes: tuple[Episode, ...] = ()
    """Those that are open, oldest first."""
    reacted: datetime | None = None
    """When the last episode of a champion was opened that retrained or rolled back."""

    def role(self, version: int) -> Role | None:
        """Return what a version is that answers; None of one that does not."""
        return "champion" if version == self.champion else self.challengers.get(version)

    def open(self, about: EpisodeKind, subject: str = "", version: int | None = None) -> Episode | None:
        """Return the open episode of a kind; of measures and evaluators the subject's, of performance the version's."""
        for one in self.episodes:
            other = (about in ("measure", "evaluator") and one.subject != subject) or (
                about == "performance" and one.version != version
            )
            if one.about == about and not other:
                return one
        return None


def decide(state: State, windows: Sequence[Judged], rule: Monitor, now: datetime, refused: int = 0) -> list[Event]:
    """Say what the last of `windows`, oldest first, begins or ends, in each kind.

    `now` is when the last window ended, `refused` the last sequence of predictions that did not fit the reference. An episode
    begins when the last `rule.windows` judged windows of the champion all moved in its kind, and ends when they are all quiet.
    Windows without a verdict are passed over, windows of other versions say nothing.
    """
    if not windows or windows[-1].version != state.champion:
        return []
    own = [one for one in windows if one.version == state.champion]
    said: list[Event] = []
    of_kinds = ([looks.of_window(one, about) for one in own] for about in OF_WINDOWS)
    for seen in (*of_kinds, looks.of_volume(own, rule)):
        for event in decide_look(state, seen, rule, now):
            said.append(event)
            state = evolve(state, event, time=now)
    return said + _fitting_again(state, own, rule, refused)


def decide_look(state: State, seen: Sequence[Look], rule: Monitor, now: datetime) -> list[Event]:
    """Say what the last of the looks at one subject, oldest first, begins, worsens or ends."""
    if not seen or (last := seen[-1]).moved is None or not _is_watched(state, last):
        return []
    needed = last.runs or rule.windows
    running = [one for one in seen if one.moved is not None and one.version == last.version][-needed:]
    if len(running) < needed or not watches(rule, last.about, last.subject):
        return []
    episode = state.open(last.about, last.subject, last.version)
    if episode is None:
        return [_begun(state, running, rule, now)] if all(one.moved for one in running) else []
    if episode.version != last.version:
        return []
    if not any(one.moved for one in running):
        return [_ended(state.model, episode, last.back or sentences.back(last.about, needed))]
    if all(one.moved and _much_worse(one, episode) for one in running):
        return [_worsened(state.model, episode, last)]
    return []


def resolve(state: State, rollout: RolloutChanged) -> list[Event]:
    """End the episodes of versions that are no longer what they were."""
    serves, beside = rollout.plan.champion.version, challengers(rollout.plan)
    roles: dict[int, Role] = {**beside, serves: "champion"}
    return [
        _ended(state.model, one, _moved_on(one, serves, roles.get(one.version)))
        for one in state.episodes
        if roles.get(one.version) != one.role
    ]


def challengers(plan: Plan) -> dict[int, Role]:
    """Return what the versions are that answer beside the champion of a plan."""
    arms: dict[int, Role] = {arm.candidate.version: "arm" for arm in (plan.trial.arms if plan.trial else ())}
    return arms | ({plan.canary.candidate.version: "canary"} if plan.canary else {})


def unwatched(state: State, rule: Monitor) -> list[Event]:
    """End the episodes about what a new spec no longer has watched."""
    return [_ended(state.model, one, CHANGED) for one in state.episodes if not watches(rule, one.about, one.subject)]


def acknowledge(state: State, episode: str, actor: str, note: str) -> list[Event]:
    """A person has seen an episode; said once. Raises Conflict when it has ended."""
    known = next((one for one in state.episodes if one.id == episode), None)
    if known is None:
        raise Conflict(f"episode {episode!r} has ended: there is nothing left to acknowledge")
    if known.acknowledged:
        return []
    return [
        EpisodeAcknowledged(
            model=state.model, version=known.version, episode=known.id, about=known.about, actor=actor, note=note
        )
    ]


def evolve(state: State, event: Event, sequence: int = 0, hops: int = 0, time: datetime | None = None) -> State:
    """Return what is known after an event; `sequence`, `hops` and `time` are those of its message."""
    match event:
        case RolloutChanged(plan=plan):
            after = replace(state, challengers=challengers(plan))
            if plan.champion.version == state.champion:
                return after
            return replace(after, champion=plan.champion.version, rollout=sequence, hops=hops)
        case DriftDetected() | PerformanceDegraded() | AnomalyDetected():
            episode = opened(event)
            reacted = event.action in REACTIONS and episode.role == "champion"
            return replace(state, episodes=(*state.episodes, episode), reacted=time if reacted else state.reacted)
        case EpisodeWorsened(episode=id_, now=score):
            return _changed(state, id_, {"score": score})
        case EpisodeAcknowledged(episode=id_):
            return _changed(state, id_, {"acknowledged": True})
        case EpisodeResolved(episode=id_):
            return replace(state, episodes=tuple(one for one in state.episodes if one.id != id_))
        case _:
            return state


def opened(event: Opening) -> Episode:
    """Return the episode that an event begins."""
    match event:
        case DriftDetected():
            subject, producer, score = event.feature, event.producer, event.distance
        case PerformanceDegraded():
            subject, producer = event.metric, event.producer
            score = looks.score(event.about, event.now, event.before)
        case AnomalyDetected():
            subject, producer = event.subject, event.producer
            score = looks.score(event.about, event.value, event.expected)
    role: Role = event.role if isinstance(event, PerformanceDegraded) else "champion"
    return Episode(event.episode, event.version, event.about, subject, producer, score, role=role)


def watches(rule: Monitor, about: EpisodeKind, subject: str = "") -> bool:
    """Whether a rule has episodes of a kind; of measures and evaluators those about a subject."""
    match about:
        case "prediction":
            return rule.prediction
        case "missing" | "categories" | "volume" | "silence" | "performance":
            return getattr(rule, about) is not None
        case "measure":
            return any(f"{one.evaluator}.{number}" == subject for one in rule.evaluators for number in one.numbers)
        case "evaluator":
            return any(one.evaluator == subject for one in rule.evaluators)
        case _:
            return True


def watched(spec: ModelSpec) -> Monitor:
    """Return how a spec has its model watched: where drift is no reason to train again, it is one to tell."""
    rule = spec.monitor
    if spec.retrain.drift or rule.action("drift") != "retrain":
        return rule
    return rule.model_copy(update={"actions": {**rule.actions, "drift": "notify"}})


def _begun(state: State, running: Sequence[Look], rule: Monitor, now: datetime) -> Event:
    last = running[-1]
    action, reason = _action(state, rule, last, now)
    inputs_moved, role = _inputs_moved(state, running), state.role(last.version)
    text = sentences.of_version(last.text, last.version, role)
    said = {
        "model": state.model,
        "version": last.version,
        "episode": derived_id(state.model, "episode", last.about, last.subject, *_reference(state, last), last.place),
        "about": last.about,
        "producer": last.producer,
        "share": last.share,
        "samples": last.samples,
        "traces": last.traces,
        "text": sentences.with_inputs(text, last.about, inputs_moved),
        "role": role,
        "action": action,
        "action_reason": reason,
    }
    return looks.opening(said, last, inputs_moved)


def _reference(state: State, look: Look) -> tuple[str, ...]:
    """Which version in which rollout it is about; a silence is about none: another champion makes no other of it."""
    return () if look.about == "silence" else (str(look.version), str(state.rollout))


def _action(state: State, rule: Monitor, look: Look, now: datetime) -> tuple[Action, str]:
    action, role = rule.action(look.about), state.role(look.version)
    if role != "champion" and action in REACTIONS:
        return _action_beside(state, role, action)
    if action not in REACTIONS or state.reacted is None or not rule.cooldown:
        return action, ""
    until = state.reacted + timedelta(seconds=rule.cooldown)
    if now >= until:
        return action, ""
    reason = f"another episode had its reaction a moment ago: until {until:%Y-%m-%d %H:%M:%S} UTC it is only told"
    return "notify", reason


def _action_beside(state: State, role: Role | None, action: Action) -> tuple[Action, str]:
    """What follows where a version on trial is to be reacted to: to train because of one that never was champion helps nobody.

    No cool-down: a canary comes of a reaction, most often.
    """
    if state.open("performance", version=state.champion):
        return "notify", "the champion became worse too: which of them is better is decided by the labels of both"
    if role == "canary":
        return "rollback", "" if action == "rollback" else "a canary that becomes worse is taken back"
    if action == "rollback":
        return action, ""
    return "notify", "the A/B test decides by its labels"


def _is_watched(state: State, look: Look) -> bool:
    """Whether episodes are about these answers: all of the champion's, of versions beside it the quality."""
    return look.version == state.champion or (look.about == "performance" and look.version in state.challengers)


def _moved_on(episode: Episode, serves: int, role: Role | None) -> str:
    """Say why an episode of a version is over that is something else now."""
    if episode.role == "champion":
        return sentences.replaced(serves)
    if role is None:
        return f"version {episode.version} no longer answers, version {serves} serves"
    return f"version {episode.version} is {'part of an A/B test' if role == 'arm' else role} now"


def _inputs_moved(state: State, running: Sequence[Look]) -> bool | None:
    """Whether inputs moved in the same stretch as answers or measures; None of everything else, and when it is not known."""
    if running[-1].about not in ("prediction", "measure"):
        return None
    if any(one.about in INPUTS for one in state.episodes):
        return True
    seen = [one.inputs_moved for one in running]
    return None if None in seen else any(seen)


def _fitting_again(state: State, windows: Sequence[Judged], rule: Monitor, refused: int) -> list[Event]:
    """End the episode about predictions that did not fit, once windows of such that do were judged after the last of them."""
    episode = state.open("schema")
    latest = [one for one in windows if one.judged][-rule.windows :]
    if episode is None or len(latest) < rule.windows or any(one.window.first <= refused for one in latest):
        return []
    return [_ended(state.model, episode, sentences.back("schema", rule.windows))]


def _much_worse(look: Look, episode: Episode) -> bool:
    return look.score > episode.score and look.score >= MUCH_WORSE * episode.score


def _worsened(model: str, episode: Episode, last: Look) -> EpisodeWorsened:
    return EpisodeWorsened(
        model=model,
        version=episode.version,
        episode=episode.id,
        about=episode.about,
        subject=last.subject,
        before=episode.score,
        now=last.score,
        window=last.window,
        text=sentences.worsened(last.text),
    )


def _ended(model: str, episode: Episode, reason: str) -> EpisodeResolved:
    return EpisodeResolved(model=model, version=episode.version, episode=episode.id, about=episode.about, reason=reason)


def _changed(state: State, episode: str, change: Mapping[str, object]) -> State:
    after = (replace(one, **change) if one.id == episode else one for one in state.episodes)  # type: ignore[arg-type]
    return replace(state, episodes=tuple(after))
