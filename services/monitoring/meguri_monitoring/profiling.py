"""Rows of predictions as profiles, per producer: small, mergeable, and the same however often the rows are read.

The rows are given in the order of the stream, and parts are merged in that order; as long as a profile keeps every row
(see `meguri_chassis.profiles`), its bytes follow from the rows alone.
"""

import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from meguri_chassis.profiles import Profile
from meguri_contracts.errors import Invalid, Malformed
from meguri_monitoring.predictions import parts_of

SAMPLES = 5
"""Predictions kept per producer to look at: the latest."""
MAX_PRODUCERS = 50
"""Producers told apart, first come; the rows of all others are those of `OTHERS`."""
OTHERS = "(others)"


@dataclass(frozen=True)
class Share:
    """What one producer brought into a window, or into a part of one."""

    profile: Profile
    samples: tuple[str, ...] = ()
    """Prediction ids of its latest rows."""
    traces: tuple[str, ...] = ()
    """Their trace ids."""


def profile(reference: Profile, frame: pl.DataFrame) -> Profile:
    """Return the profile of rows of predictions, on the bin edges of the reference of their version.

    Raises Invalid when a feature of the reference is not among the columns, or is no number there.
    """
    counted = reference.like()
    counted.update(_numbers(reference, frame))
    return counted


def by_producer(reference: Profile, frame: pl.DataFrame) -> dict[str, Share]:
    """Return what each producer has in rows of predictions, in the order in which they come.

    At most `MAX_PRODUCERS` are told apart. Raises Invalid like `profile`.
    """
    values = _numbers(reference, frame)
    senders = _told_apart(frame["producer"])
    shares = {}
    for name in senders.unique(maintain_order=True):
        mine = np.flatnonzero((senders == name).to_numpy())
        counted = reference.like()
        counted.update(values[mine])
        latest = frame[mine[-SAMPLES:]]
        shares[name] = Share(counted, tuple(latest["prediction_id"]), tuple(latest["trace_id"]))
    return shares


def merged(parts: Iterable[Mapping[str, Share]]) -> dict[str, Share]:
    """Return the shares of all parts together, which are given in the order of their rows and stay as they are.

    Raises Invalid when they are not on the edges of one reference.
    """
    together: dict[str, Share] = {}
    for part in parts:
        for name, share in part.items():
            known = name in together or len(together.keys() - {OTHERS}) < MAX_PRODUCERS
            place = name if known else OTHERS
            together[place] = _joined(together[place], share) if place in together else share
    return together


def share_to_bytes(share: Share) -> bytes:
    """Return a share for a database; `share_from_bytes` gives it back exactly."""
    data = {"samples": share.samples, "traces": share.traces, "profile": share.profile.to_dict()}
    return zlib.compress(json.dumps(data, separators=(",", ":"), allow_nan=False).encode(), 1)


def share_from_bytes(data: bytes) -> Share:
    """Raises Malformed when `data` is not what `share_to_bytes` gave."""
    try:
        share = json.loads(zlib.decompress(data))
        return Share(Profile.from_dict(share["profile"]), tuple(share["samples"]), tuple(share["traces"]))
    except (zlib.error, ValueError, LookupError, TypeError) as error:
        raise Malformed(f"not a producer's share of a window: {type(error).__name__}: {error}") from error


def shares_to_bytes(shares: Mapping[str, Share]) -> bytes:
    """Return the shares of a part for a database; `shares_from_bytes` gives them back exactly."""
    named = {name: share_to_bytes(share).hex() for name, share in shares.items()}
    return json.dumps(named, separators=(",", ":")).encode()


def shares_from_bytes(data: bytes) -> dict[str, Share]:
    """Raises Malformed when `data` is not what `shares_to_bytes` gave."""
    try:
        named = json.loads(data)
        return {name: share_from_bytes(bytes.fromhex(share)) for name, share in named.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise Malformed(f"not shares of a window: {type(error).__name__}: {error}") from error


def require_fitting(reference: Profile, frame: pl.DataFrame) -> None:
    """Raise Invalid when rows of predictions do not have the features of their reference, or others that are numbers."""
    _numbers(reference, frame.clear())
    features, _ = parts_of(frame.columns)
    if odd := [name for name in features if name not in reference.features and frame.schema[name].is_numeric()]:
        raise Invalid(f"the predictions have a column {odd[0]!r}, which is no feature of their reference")


def _joined(before: Share, after: Share) -> Share:
    both = before.profile.copy()
    both.merge(after.profile)
    samples = (*before.samples, *after.samples)[-SAMPLES:]
    return Share(both, samples, (*before.traces, *after.traces)[-SAMPLES:])


def _numbers(reference: Profile, frame: pl.DataFrame) -> np.ndarray:
    names = list(reference.features)
    if gone := [name for name in names if name not in frame.columns]:
        raise Invalid(f"the predictions have no column {gone[0]!r}, which is a feature of their reference")
    if texts := [name for name in names if not (frame.schema[name].is_numeric() or frame.schema[name] == pl.Boolean)]:
        raise Invalid(f"{texts[0]!r} is {frame.schema[texts[0]]} in the predictions and a number in their reference")
    if not names:
        return np.empty((frame.height, 0))
    return frame.select(pl.col(names).cast(pl.Float64).fill_null(np.nan)).to_numpy()


def _told_apart(producers: pl.Series) -> pl.Series:
    first = producers.unique(maintain_order=True).head(MAX_PRODUCERS)
    known = producers.is_in(first.implode())
    return producers.zip_with(known, pl.Series([OTHERS]))
