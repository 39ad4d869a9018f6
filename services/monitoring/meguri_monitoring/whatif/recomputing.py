"""What was looked at, once more through the state machine of episodes. Its events are looked at and thrown away."""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from meguri_contracts.events import EpisodeResolved, EpisodeWorsened, Event
from meguri_contracts.spec import Monitor
from meguri_monitoring.episodes import episodes
from meguri_monitoring.episodes.episodes import State
from meguri_monitoring.episodes.looks import Look

SHOWN = 2000
"""Looks that an answer has at most: of more, those at which something began or ended, and some of the others."""
UNKNOWN = datetime(1970, 1, 1, tzinfo=UTC).isoformat()
"""When something was looked at of which that is not known: a window without any row, labels of before the journal."""
_WORDS: Mapping[type[Event], str] = {EpisodeWorsened: "worsened", EpisodeResolved: "resolved"}


@dataclass(frozen=True)
class Seen:
    """What was looked at and found: a window, the labels up to a time, a time without predictions."""

    number: int
    rows: int
    """Predictions of a window; of quality the labels so far."""
    began: str
    ended: str
    moved: bool | None
    """None without a verdict."""
    subject: str
    """The worst, whether it moved or not."""
    score: float
    threshold: float
    method: str
    said: str = ""
    """`opened`, `worsened` or `resolved`."""


@dataclass(frozen=True)
class Span:
    """An episode that would have been."""

    opened: str
    """When that ended with which it would have begun; `resolved` that with which it would have ended, empty if none would."""
    resolved: str
    number: int
    """Of what it would have begun with."""
    or_before: bool
    """Whether it would have begun at once: then perhaps before what was recomputed."""
    same: bool
    """Whether it is the one that happened: about the same, begun at the same place, or of quality, while it was open."""
    subject: str
    producer: str
    share: float
    text: str


@dataclass(frozen=True)
class Outcome:
    """What would have been."""

    episodes: tuple[Span, ...]
    looked: tuple[Seen, ...]


def recomputed(
    looked: Iterable[tuple[Look | None, Seen]], rule: Monitor, state: State, happened: str, *, whole: bool
) -> Outcome:
    """Hold each look against those before it, as they come. `happened` is the id of the episode that there was, `whole` whether
    there was nothing to be looked at before.

    None of a look is passed over: nothing could have been said then.
    """
    before: deque[Look] = deque(maxlen=4 * rule.windows)
    shown = _Shown()
    spans: list[Span] = []
    for number, (look, seen) in enumerate(looked, 1):
        said: list[Event] = []
        if look is not None:
            before.append(look)
            now = datetime.fromisoformat(seen.ended)
            said = episodes.decide_look(state, before, rule, now)
            for event in said:
                state = episodes.evolve(state, event, time=now)
                at_once = not whole and number <= (look.runs or rule.windows)
                spans = _grown(spans, event, seen, at_once=at_once, happened=happened)
            if spans and not spans[-1].same and _begins(happened, look, rule, state, now):
                spans[-1] = replace(spans[-1], same=True)
        shown.add(replace(seen, said=", ".join(_WORDS.get(type(event), "opened") for event in said)))
    return Outcome(tuple(spans), shown.found)


def _begins(happened: str, look: Look, rule: Monitor, state: State, now: datetime) -> bool:
    """Whether what happened began with a look at which it had begun here before: live not every label is looked at."""
    if not look.moved or look.runs != 1 or not state.episodes:
        return False
    said = episodes.decide_look(replace(state, episodes=()), [look], rule, now)
    return any(getattr(event, "episode", "") == happened for event in said)


class _Shown:
    """Keeps every look as long as they are few, and then every second, every fourth and so on."""

    def __init__(self) -> None:
        self._every, self._count = 1, 0
        self._kept: list[tuple[int, Seen]] = []

    def add(self, seen: Seen) -> None:
        if seen.said or self._count % self._every == 0:
            self._kept.append((self._count, seen))
        self._count += 1
        if len(self._kept) > SHOWN:
            self._every *= 2
            self._kept = [one for one in self._kept if one[1].said or one[0] % self._every == 0]

    @property
    def found(self) -> tuple[Seen, ...]:
        return tuple(seen for _, seen in self._kept)


def _grown(spans: list[Span], event: Event, seen: Seen, *, at_once: bool, happened: str) -> list[Span]:
    match event:
        case EpisodeResolved():
            return [*spans[:-1], replace(spans[-1], resolved=seen.ended)]
        case EpisodeWorsened():
            return spans
        case _:
            episode = episodes.opened(event)  # type: ignore[arg-type]
            return [
                *spans,
                Span(
                    opened=seen.ended,
                    resolved="",
                    number=seen.number,
                    or_before=at_once,
                    same=episode.id == happened,
                    subject=episode.subject,
                    producer=episode.producer,
                    share=getattr(event, "share", 0.0),
                    text=getattr(event, "text", ""),
                ),
            ]
