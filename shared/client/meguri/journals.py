"""The log out of the journals of all services: merged by sequence, looked through for gaps, kept in a file."""

import base64
import gzip
import heapq
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from meguri.client import Meguri, MeguriClientError
from meguri.log_copy import Stored
from meguri_contracts.topology import PORTS, PREDICTIONS, subject


class JournalsDiffer(MeguriClientError):
    """Two services remember different messages at one sequence."""


class Gaps(MeguriClientError):
    """No service remembers some messages."""

    def __init__(self, missing: "tuple[Range, ...]") -> None:
        said = ", ".join(str(one) for one in missing[:10]) + (", …" if len(missing) > 10 else "")
        super().__init__(
            f"no journal has {sum(one.last - one.first + 1 for one in missing)} messages of the log: {said}; nothing was "
            "changed. Start every service that has tables, or take the loss with --accept-gaps"
        )


@dataclass(frozen=True)
class Range:
    """Sequences, both ends included."""

    first: int
    last: int

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


@dataclass(frozen=True)
class Collected:
    """What all journals hold together, in `file`; `last` is the last sequence that the log must have.

    `predictions` is the last sequence of their stream that was counted.
    """

    file: Path
    messages: int
    last: int
    missing: tuple[Range, ...]
    predictions: int


def collect(meguri: Meguri, file: Path) -> Collected:
    """Merge the journals of all services into a file. Raises Unreachable when a service is not there, JournalsDiffer."""
    services = digests(meguri)
    positions = {service: found["position"] for service, found in services.items()}
    predictions = max((found["read"].get(PREDICTIONS.lower(), 0) for found in services.values()), default=0)
    journals = {service: _journal(meguri, service) for service in positions}
    messages, expected, missing = 0, 1, []
    with gzip.open(file, "wt", compresslevel=3, encoding="utf-8") as out:
        for message in _merged(journals):
            if message.sequence > expected:
                missing.append(Range(expected, message.sequence - 1))
            write(out, message)
            messages, expected = messages + 1, message.sequence + 1
    last = max([expected - 1, *positions.values()])
    if last >= expected:
        missing.append(Range(expected, last))
    return Collected(file, messages, last, tuple(missing), predictions)


def digests(meguri: Meguri, *, after: int = 0) -> dict[str, dict[str, Any]]:
    """Return position and digest of every service that has tables, once they have reached the sequence `after`."""
    found = {service: meguri.digest(service, after=after) for service in PORTS if service != "console"}
    return {service: digest for service, digest in found.items() if digest is not None}


def write(out: Any, message: Stored) -> None:
    out.write(json.dumps(message.as_line()) + "\n")


def read(file: Path) -> Iterator[Stored]:
    """Yield the messages of a file as `write` wrote them."""
    with gzip.open(file, "rt", encoding="utf-8", newline="\n") as lines:
        for line in lines:
            yield Stored.of_line(json.loads(line))


def _journal(meguri: Meguri, service: str) -> Iterator[tuple[int, str, Stored]]:
    for line in meguri.lines("GET", service, "/log/journal"):
        body = base64.b64decode(line["body"])
        message = Stored(line["sequence"], subject(line["kind"], line["key"]), line["headers"], body, line["time"])
        yield message.sequence, service, message


def _merged(journals: Mapping[str, Iterable[tuple[int, str, Stored]]]) -> Iterator[Stored]:
    in_order = heapq.merge(*journals.values(), key=lambda entry: entry[:2])
    for sequence, entries in groupby(in_order, key=lambda entry: entry[0]):
        (_, first, message), *others = entries
        for _, service, other in others:
            if not message.is_as(other):
                raise JournalsDiffer(
                    f"{first} and {service} remember different messages at {sequence}; nothing was changed. "
                    "Rebuild one from the other's log, or stop the one that is of another system"
                )
        yield message
