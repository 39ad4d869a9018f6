"""What a judged window rests on, as plain JSON: histograms of what moved, and who brought what."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from meguri_chassis.profiles import CategoricalProfile, ColumnProfile, NumericProfile, Profile
from meguri_monitoring.profiles.profiling import Share, together
from meguri_monitoring.verdicts import distances
from meguri_monitoring.verdicts.findings import Finding
from meguri_monitoring.verdicts.judging import DISTANCES, NAMED, Judged, columns_of, contributions

CATEGORIES = 20
"""Categories that are shown by themselves, the most frequent ones; as many that the reference does not have."""


def evidence(judged: Judged, shares: Mapping[str, Share], reference: Profile) -> dict[str, Any]:
    """Return what is worth keeping of a window in which something moved: of each kind at most `NAMED` subjects, the worst.

    `shares` are those that it was judged by.
    """
    live = together(reference, shares)
    return {
        "rows": {"reference": reference.rows, "current": live.rows},
        "subjects": [
            _subject(finding, reference, live, shares) for about in DISTANCES for finding in judged.moved(about)[:NAMED]
        ],
        "producers": {
            name: {"rows": share.profile.rows, "samples": list(share.samples), "traces": list(share.traces)}
            for name, share in shares.items()
        },
    }


def _subject(finding: Finding, reference: Profile, live: Profile, shares: Mapping[str, Share]) -> dict[str, Any]:
    about, name = finding.about, finding.subject
    ours, theirs = columns_of(reference, about)[name], columns_of(live, about)[name]
    bins = _bins(ours, theirs)
    added = {one.producer: one.share for one in contributions(about, [name], reference, shares)}
    return {
        "about": about,
        "subject": name,
        "score": finding.score,
        "threshold": finding.threshold,
        "method": finding.method,
        "p_value": finding.p_value,
        "bins": [label for label, _ in bins],
        "reference": _figures(ours, bins),
        "current": _figures(theirs, bins),
        "producers": {
            producer: {
                **_figures(columns_of(share.profile, about)[name], bins),
                "contribution": added.get(producer, 0.0),
            }
            for producer, share in shares.items()
        },
        "strangers": _strangers(theirs),
    }


Bins = list[tuple[str, Sequence[int]]]
"""How each is called, and which of a profile's own counts it takes together; its last are those of strangers."""


def _bins(reference: ColumnProfile, live: ColumnProfile) -> Bins:
    if isinstance(reference, NumericProfile):
        ends = [*distances.bins(reference), 2 * reference.edges.size + 1]
        return [(_label(reference.edges.tolist(), start, end), range(start, end)) for start, end in pairwise(ends)]
    assert isinstance(live, CategoricalProfile)
    order = np.argsort(-(reference.counts + live.counts), kind="stable").tolist()
    common, rest = order[:CATEGORIES], order[CATEGORIES:]
    named: Bins = [(reference.known[at], [at]) for at in common]
    others: Bins = [(f"{len(rest)} others", rest)] if rest else []
    return [*named, *others, ("not in the reference", [len(reference.known)])]


def _label(edges: Sequence[float], start: int, end: int) -> str:
    """Counts stand for below the first edge, on it, between it and the second, and so on."""
    if start % 2:
        return f"{edges[start // 2]:.4g}"
    low = f"{edges[start // 2 - 1]:.4g}" if start else None
    high = f"{edges[(end - 1) // 2]:.4g}" if end - 1 < 2 * len(edges) else None
    if low is None and high is None:
        return "all"
    if low is None:
        return f"up to {high}"
    return f"above {low}" if high is None else f"{low} to {high}"


def _figures(column: ColumnProfile, bins: Bins) -> dict[str, Any]:
    counts = column.counts if isinstance(column, NumericProfile) else np.append(column.counts, column.strangers)
    figures: dict[str, Any] = {
        "rows": column.rows,
        "missing": column.missing,
        "counts": [int(counts[list(places)].sum()) for _, places in bins],
    }
    if isinstance(column, NumericProfile):
        figures |= {"mean": column.mean, "std": column.std}
    return figures


def _strangers(column: ColumnProfile) -> dict[str, int]:
    """The most frequent categories that the reference does not have."""
    if isinstance(column, NumericProfile):
        return {}
    return dict(sorted(column.others.items(), key=lambda other: (-other[1], other[0]))[:CATEGORIES])
