"""Predictions of a model version, cut into windows of equal size.

A window holds what a verdict needs, a profile per producer, and a few prediction ids to look at. It does not depend on
how the stream was cut into messages, but for the sequences that it names.
"""

import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from meguri_chassis.profiles import Profile
from meguri_contracts.errors import Invalid, Malformed
from meguri_monitoring.predictions import Batch

SAMPLES = 5
"""Prediction ids kept per producer: the latest."""
MAX_PRODUCERS = 50
"""Producers told apart in a window, first come; the rows of all others are those of `OTHERS`."""
OTHERS = "(others)"


@dataclass(frozen=True)
class Share:
    """What one producer brought into a window."""

    profile: Profile
    samples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Window:
    """Rows of one model version. `first` and `last` are stream sequences, both included; without rows, `last` is what
    was counted before it.
    """

    first: int = 0
    last: int = 0
    rows: int = 0
    producers: Mapping[str, Share] = field(default_factory=dict)

    @property
    def by_producer(self) -> dict[str, Profile]:
        return {name: share.profile for name, share in self.producers.items()}

    def profile(self, reference: Profile) -> Profile:
        """Return the profile of all rows, whoever sent them."""
        together = reference.like()
        for name in sorted(self.producers):
            together.merge(self.producers[name].profile)
        return together

    def to_bytes(self) -> bytes:
        """Return the window for a database; `from_bytes` gives it back exactly."""
        producers = {
            name: {"samples": share.samples, "profile": share.profile.to_dict()}
            for name, share in self.producers.items()
        }
        data = {"first": self.first, "last": self.last, "rows": self.rows, "producers": producers}
        return zlib.compress(json.dumps(data, separators=(",", ":")).encode(), 1)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Window":
        """Raises Malformed when `data` is not what `to_bytes` gave."""
        try:
            window = json.loads(zlib.decompress(data))
            producers = {name: _share(share) for name, share in window["producers"].items()}
            return cls(window["first"], window["last"], window["rows"], producers)
        except (zlib.error, ValueError, LookupError, TypeError, AttributeError) as error:
            raise Malformed(f"not a window: {type(error).__name__}: {error}") from error


def add(window: Window, batch: Batch, reference: Profile, window_rows: int) -> tuple[list[Window], Window]:
    """Return the windows that `batch` fills, of `window_rows` rows each, and the one that stays open.

    A batch that was counted before changes nothing. Raises Invalid when its features are not those of the reference.
    """
    if batch.sequence <= window.last:
        return [], window
    rows = numbers(batch, reference)
    closed = []
    start = 0
    while start < len(batch.ids):
        # A window that was open when its limit was lowered closes with what it has.
        end = start + max(window_rows - window.rows, 0)
        window = _extended(window, batch, rows, slice(start, end), reference)
        if window.rows >= window_rows:
            closed.append(window)
            window = Window(last=batch.sequence)
        start = end
    return closed, window


def numbers(batch: Batch, reference: Profile) -> np.ndarray:
    """Return the values of the features that the reference has, [n, features]. Text is not judged, booleans as it does.

    Raises Invalid when the numbers are not those of the reference.
    """
    judged = [at for at, name in enumerate(batch.features) if name in reference.features or name not in batch.flags]
    if [batch.features[at] for at in judged] != list(reference.features):
        raise Invalid(
            f"predictions of {batch.model} version {batch.version} have {len(judged)} features, not the "
            f"{len(reference.features)} of its reference, or the same in another order"
        )
    return batch.rows[:, judged]


def require_features(batch: Batch, reference: Profile) -> None:
    """Raise Invalid when the numbers among the features of `batch` are not those of the reference."""
    numbers(batch, reference)


def _extended(window: Window, batch: Batch, values: np.ndarray, part: slice, reference: Profile) -> Window:
    ids, rows = batch.ids[part], values[part]
    if not ids:
        return window
    producers = dict(window.producers)
    senders = np.array(_told_apart(producers, batch.producers[part]))
    for name in dict.fromkeys(senders.tolist()):
        mine = senders == name
        share = producers.get(name) or Share(reference.like())
        profile = share.profile.copy()
        profile.update(rows[mine])
        latest = [one for one, is_mine in zip(ids, mine, strict=True) if is_mine]
        producers[name] = Share(profile, (*share.samples, *latest)[-SAMPLES:])
    first = window.first if window.rows else batch.sequence
    return replace(window, first=first, last=batch.sequence, rows=window.rows + len(ids), producers=producers)


def _told_apart(known: Iterable[str], senders: Iterable[str]) -> list[str]:
    named = set(known)
    names = []
    for sender in senders:
        if sender not in named and len(named) >= MAX_PRODUCERS:
            names.append(OTHERS)
        else:
            named.add(sender)
            names.append(sender)
    return names


def _share(data: Mapping[str, Any]) -> Share:
    return Share(Profile.from_dict(data["profile"]), tuple(data["samples"]))
