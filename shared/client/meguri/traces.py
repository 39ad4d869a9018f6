"""Traces in the terminal: reads the OTLP JSON lines of the services on this machine and draws a waterfall, waits folded."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLD = 1.0
"""Seconds without any work after which a wait is folded."""
WIDTH = 48
"""Characters of the time axis."""
BY = ("meguri.event.id", "meguri.prediction.id", "meguri.run.id", "meguri.journey.id", "meguri.episode.id")
"""Attributes by whose value a trace may be asked for, beside its own id."""


@dataclass(frozen=True)
class Span:
    """A piece of work. Times in nanoseconds since 1970."""

    trace: str
    id: str
    parent: str
    service: str
    name: str
    start: int
    end: int
    failed: bool
    attributes: dict[str, Any]
    links: tuple[tuple[str, str], ...]
    """Trace id and span id of each span linked to."""


@dataclass(frozen=True)
class Line:
    """A span as it is drawn: how deep in the tree, and where on the folded axis (0 to WIDTH)."""

    span: Span
    depth: int
    first: int
    last: int


@dataclass(frozen=True)
class Waterfall:
    """A trace in the order of its tree. `waits` are the folded waits in seconds."""

    trace: str
    lines: tuple[Line, ...]
    seconds: float
    busy: float
    waits: tuple[float, ...]


def read(folder: Path) -> list[Span]:
    """Return all spans that the services wrote to files of `folder`."""
    return [span for file in sorted(folder.glob("*.jsonl")) for span in _spans(file)]


def traces_of(spans: Sequence[Span], id_: str) -> list[str]:
    """Return the ids of the traces that an id belongs to: of a trace, event, prediction, run, journey or episode."""
    found = (s for s in spans if s.trace == id_ or any(s.attributes.get(name) == id_ for name in BY))
    return list(dict.fromkeys(span.trace for span in sorted(found, key=lambda span: span.start)))


def waterfall(spans: Iterable[Span], trace: str) -> Waterfall:
    """Lay out one trace."""
    own = sorted((span for span in spans if span.trace == trace), key=lambda span: (span.start, span.end))
    axis = _Axis(own)
    lines = tuple(Line(span, depth, *axis.place(span)) for span, depth in _tree(own))
    return Waterfall(trace, lines, axis.seconds, axis.busy, axis.waits)


def neighbours(spans: Sequence[Span], trace: str) -> tuple[list[Span], list[Span]]:
    """Return the spans of other traces that this one came from, and those that came from it."""
    by_id = {(span.trace, span.id): span for span in spans}
    came_from = [
        by_id[link] for s in spans if s.trace == trace for link in s.links if link[0] != trace and link in by_id
    ]
    led_to = [span for span in spans if span.trace != trace and any(link[0] == trace for link in span.links)]
    return _distinct(came_from), _distinct(led_to)


class _Axis:
    """Time with long waits folded, so that work is seen: each fold takes one character."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self._pieces: list[tuple[int, int]] = []
        for span in spans:
            if self._pieces and span.start - self._pieces[-1][1] <= FOLD * 1e9:
                self._pieces[-1] = (self._pieces[-1][0], max(self._pieces[-1][1], span.end))
            else:
                self._pieces.append((span.start, span.end))
        gaps = zip(self._pieces, self._pieces[1:], strict=False)
        self.waits = tuple((after[0] - before[1]) / 1e9 for before, after in gaps)
        self._shown = sum(end - start for start, end in self._pieces) or 1
        self.busy = self._shown / 1e9
        self.seconds = (self._pieces[-1][1] - self._pieces[0][0]) / 1e9 if self._pieces else 0.0

    def place(self, span: Span) -> tuple[int, int]:
        return self._at(span.start), max(self._at(span.end), self._at(span.start) + 1)

    def _at(self, time: int) -> int:
        room = WIDTH - len(self.waits)
        passed = 0
        for folds, (start, end) in enumerate(self._pieces):
            if time <= end:
                return round(room * (passed + max(time - start, 0)) / self._shown) + folds
            passed += end - start
        return WIDTH


def _tree(spans: Sequence[Span]) -> Iterator[tuple[Span, int]]:
    known = {span.id for span in spans}
    children: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        children[span.parent if span.parent in known else ""].append(span)

    def below(parent: str, depth: int) -> Iterator[tuple[Span, int]]:
        for span in children[parent]:
            yield span, depth
            yield from below(span.id, depth + 1)

    return below("", 0)


def _distinct(spans: Iterable[Span]) -> list[Span]:
    return sorted({(span.trace, span.id): span for span in spans}.values(), key=lambda span: span.start)


def _spans(file: Path) -> Iterator[Span]:
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                resources = json.loads(line)["resourceSpans"]
            except (ValueError, KeyError):
                continue  # the last line may still be in the writing
            for resource in resources:
                service = _attributes(resource["resource"]).get("service.name", "unknown")
                for scope in resource["scopeSpans"]:
                    yield from (_span(service, span) for span in scope["spans"])


def _span(service: str, span: dict[str, Any]) -> Span:
    return Span(
        trace=span["traceId"],
        id=span["spanId"],
        parent=span.get("parentSpanId", ""),
        service=str(service).removeprefix("meguri-"),
        name=span["name"],
        start=int(span["startTimeUnixNano"]),
        end=int(span["endTimeUnixNano"]),
        failed=span.get("status", {}).get("code") in (2, "STATUS_CODE_ERROR"),
        attributes=_attributes(span),
        links=tuple((link["traceId"], link["spanId"]) for link in span.get("links", [])),
    )


def _attributes(holder: dict[str, Any]) -> dict[str, Any]:
    return {each["key"]: next(iter(each["value"].values()), None) for each in holder.get("attributes", [])}
