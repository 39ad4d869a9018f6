"""What would have become of a past episode under another rule or another version's reference, beside what really happened.

It is recomputed from the predictions that are kept; nothing is written, neither to the log nor to a database or a table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sqlmodel import Session

from meguri_chassis.profiles import Profile
from meguri_chassis.store import utc
from meguri_contracts.errors import Invalid
from meguri_contracts.spec import EpisodeKind, Monitor
from meguri_monitoring import store
from meguri_monitoring.episodes import store as episode_store
from meguri_monitoring.episodes.store import EpisodeRow
from meguri_monitoring.predictions import tables
from meguri_monitoring.predictions.predictions import SEQUENCE
from meguri_monitoring.verdicts.judging import Judged
from meguri_monitoring.whatif import recomputing
from meguri_monitoring.windows import store as window_store
from meguri_monitoring.windows.windows import Part

BEFORE = 20
"""Windows before the one that began the episode that are recomputed too."""
MOST = 2000
"""Windows that are recomputed at once."""
AT_ONCE = 20_000
"""Rows that are read at once, but for a larger part of a window."""


@dataclass(frozen=True)
class Past:
    """What really happened: the episode, and the judged windows from before it until its end."""

    episode: EpisodeRow
    rule: Monitor
    """As it is now."""
    first: int
    """Sequence with which the counting of the version's rows into windows began."""
    rows: int
    """Counted into windows from there to the end."""
    windows: tuple[Judged, ...]
    length: int
    """Of windows by time, in microseconds; 0 of those by rows."""

    @property
    def about(self) -> EpisodeKind:
        return cast(EpisodeKind, self.episode.about)

    @property
    def last(self) -> int:
        return self.windows[-1].window.last


def past(session: Session, episode: str) -> Past:
    """Return what is known of an episode. Raises NotFound; Invalid for one that does not follow from windows."""
    row = episode_store.episode(session, episode)
    window = row.detected.get("window")
    if row.about not in recomputing.KINDS or window is None:
        raise Invalid(
            f"an episode of {row.about} does not follow from windows of predictions: there is nothing to recompute"
        )
    known = window_store.since_rollout(session, row.model, row.version, window["first"], window["last"])
    evidence = episode_store.evidence(session, episode)
    end = evidence[-1].number if row.resolved and evidence else known[-1].number if known else None
    kept = [one for one in known if one.number is not None and end is not None and one.number <= end]
    if not kept:
        raise Invalid("the windows of that time are no longer kept: there is nothing to recompute it from")
    opened = next(one.number for one in kept if (one.first, one.last) == (window["first"], window["last"]))
    return Past(
        episode=row,
        rule=store.rule(session, row.model),
        first=kept[0].first,
        rows=sum(one.rows for one in kept),
        windows=tuple(one.verdict for one in kept if (one.number or 0) >= (opened or 0) - BEFORE),
        length=kept[-1].length,
    )


def recompute(
    past: Past, data_url: str, reference: Profile, reference_version: int, asked: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what would have been, and what was. Raises Invalid."""
    row = past.episode
    rule = recomputing.changed(past.rule, past.about, row.subject, asked)
    uri = tables.table_uri(data_url, row.model, row.version)
    sequences, times = _times(uri, past)
    since = past.windows[0].window.first
    closed = [one for one in recomputing.cut(sequences, times, rule) if one.last >= since]
    if len(closed) > MOST:
        raise Invalid(f"{len(closed)} windows are more than the {MOST} that are recomputed at once")
    outcome = recomputing.recomputed(
        closed, _Rows(uri, sequences), reference, rule, version=row.version, about=past.about
    )
    fields = {name: getattr(rule, name) for name in Monitor.model_fields}
    differs = {name: value for name, value in fields.items() if value != getattr(past.rule, name)}
    return {
        "episode": row.episode,
        "model": row.model,
        "version": row.version,
        "about": past.about,
        "changed": differs | ({"reference": reference_version} if reference_version != row.version else {}),
        "happened": _happened(row) | {"windows": [asdict(one) for one in _seen(past.windows, past)]},
        "would": [asdict(one) for one in outcome.episodes],
        "windows": [asdict(one) for one in outcome.windows],
    }


def _seen(windows: Sequence[Judged], past: Past) -> Sequence[recomputing.Seen]:
    return recomputing.seen(windows, past.rule, past.about)


def _happened(row: EpisodeRow) -> dict[str, Any]:
    return {
        "opened": utc(row.opened).isoformat(),
        "resolved": utc(row.resolved).isoformat() if row.resolved else "",
        "reason": row.reason,
        "subject": row.subject,
        "producer": row.producer,
    }


def _times(uri: str, past: Past) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sequence and time of the rows that were counted, in the order of the stream."""
    rows = tables.scan(uri)
    if rows is None:
        raise Invalid("the predictions of that time are no longer kept: there is nothing to recompute it from")
    found = rows.filter(pl.col(SEQUENCE).is_between(past.first, past.last)).select(SEQUENCE, "time").collect()
    found = found.sort(SEQUENCE, maintain_order=True)
    if not past.length:
        # The last message may go on into windows of after the episode.
        found = found.head(past.rows)
    return found[SEQUENCE].to_numpy(), found["time"].to_physical().to_numpy()


class _Rows:
    """Rows of parts that follow on each other, of which many are read at once."""

    def __init__(self, uri: str, sequences: NDArray[np.int64]) -> None:
        self._uri, self._sequences = uri, sequences
        self._first, self._last = 0, -1
        self._rows = pl.DataFrame()

    def __call__(self, part: Part) -> pl.DataFrame:
        if part.first < self._first or part.last > self._last:
            enough = int(np.searchsorted(self._sequences, part.first)) + AT_ONCE
            self._first = part.first
            self._last = max(part.last, int(self._sequences[min(enough, len(self._sequences) - 1)]))
            self._rows = tables.between(self._uri, self._first, self._last)
        return self._rows
