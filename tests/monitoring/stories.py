"""An episode and a week as reports tell them, and what a reader sees of a page."""

import re
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np

from meguri_contracts.events import EpisodeAcknowledged, EpisodeResolved, Event, NoticeSent, TrainingPostponed, Window
from meguri_contracts.spec import EpisodeKind
from meguri_monitoring.episodes import timeline
from meguri_monitoring.reports.story import Amount, Days, Happened, Looked, Story, compared
from meguri_monitoring.wording.wording import Language
from tests.monitoring.episodes_of import TRACE, opening

BEGAN = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
EDGES = np.linspace(-4, 6, 21)


def evidence() -> dict[str, Any]:
    """What is kept of a window in which camera-b moved `brightness`."""
    random = np.random.default_rng(7)
    return {
        "subjects": [
            _numbers("contrast", random.normal(size=5000), random.normal(0.2, 1, size=500), 0.12),
            _numbers("brightness", random.normal(size=5000), random.normal(1.5, 1, size=500), 1.48),
            {
                "about": "categories",
                "subject": "lens",
                "score": 0.08,
                "threshold": 0.01,
                "bins": ["wide", "tele", "not in the reference"],
                "reference": {"rows": 5000, "missing": 0, "counts": [4000, 1000, 0]},
                "current": {"rows": 500, "missing": 0, "counts": [380, 80, 40]},
                "producers": {"camera-b": {"rows": 170, "missing": 0, "counts": [80, 50, 40]}},
            },
            {
                "about": "missing",
                "subject": "exposure",
                "score": 0.3,
                "threshold": 0.05,
                "bins": ["up to 0", "above 0"],
                "reference": {"rows": 5000, "missing": 50, "counts": [2000, 2950]},
                "current": {"rows": 500, "missing": 155, "counts": [145, 200]},
                "producers": {"camera-b": {"rows": 200, "missing": 150, "counts": [0, 50], "contribution": 1.02}},
            },
        ]
    }


def story(about: EpisodeKind = "drift", *, ended: bool = True, language: Language = "en", **given: Any) -> Story:
    """An episode with everything that a report can show."""
    told = opening("digits", "e-1", about, **given)
    of: dict[str, Any] = {"model": "digits", "episode": "e-1"}
    looked = [
        Looked(
            3,
            number,
            Window(first=100 * number + 1, last=100 * number + 100, rows=100),
            _time(number),
            score,
            0.1,
            (score or 0) > 0.1,
        )
        for number, score in enumerate((0.03, 0.05, 0.02, 0.9, 1.48, 1.51, None, 1.3, 0.04, 0.03))
    ]
    events: list[tuple[timedelta, Event, str]] = [
        (timedelta(), told, TRACE),
        (timedelta(seconds=2), NoticeSent(**of, moment="opened", target="mailto://smtp.example.com", subject=""), ""),
        (
            timedelta(seconds=9),
            TrainingPostponed(model="digits", triggers=(), rows=0, needed=1, reason="new rows that show it are needed"),
            TRACE,
        ),
        (timedelta(minutes=4), EpisodeAcknowledged(**of, version=3, about=about, actor="meguri"), ""),
        (timedelta(minutes=61), EpisodeResolved(**of, version=3, reason="version 4 serves"), ""),
    ]
    happened = [
        Happened(BEGAN + after, event.kind(), timeline.sentence(event, language), trace)
        for after, event, trace in events
    ]
    return Story(
        opening=told,
        began=BEGAN,
        champion=4 if ended else 3,
        ended=BEGAN + timedelta(minutes=61) if ended else None,
        reason="version 4 serves" if ended else "",
        compared=compared(evidence()),
        looked=looked,
        happened=happened if ended else happened[:3],
    )


def week(language: Language = "en") -> Days:
    """Seven days with two episodes."""
    times = [BEGAN - timedelta(days=5) + timedelta(hours=6 * n) for n in range(28)]
    random = np.random.default_rng(3)
    return Days(
        model="digits",
        since=times[0],
        until=times[-1] + timedelta(hours=6),
        champion=4,
        episodes=[story(language=language), story("measure", ended=False, language=language)],
        volume=[
            Amount(time, float(amount)) for time, amount in zip(times, random.integers(800, 2400, 28), strict=True)
        ],
        metric="accuracy",
        quality=[
            Amount(time, None if n in (3, 4) else 0.95 - 0.1 * (18 < n < 22) + random.normal(0, 0.005), 100)
            for n, time in enumerate(times)
        ],
        versions={3: 31_000, 4: 9_000},
        happened=story(language=language).happened,
    )


def _numbers(subject: str, before: np.ndarray, now: np.ndarray, score: float) -> dict[str, Any]:
    reference, current = (np.histogram(values, EDGES)[0] for values in (before, now))
    half = np.histogram(now[:200], EDGES)[0]
    return {
        "about": "drift",
        "subject": subject,
        "score": score,
        "threshold": 0.1,
        "bins": [f"{low:.1f} to {high:.1f}" for low, high in pairwise(EDGES)],
        "reference": {"rows": 5000, "missing": 0, "mean": float(before.mean()), "counts": reference.tolist()},
        "current": {"rows": 500, "missing": 0, "mean": float(now.mean()), "counts": current.tolist()},
        "producers": {
            "camera-a": {"rows": 300, "missing": 0, "counts": (current - half).tolist(), "contribution": -0.02},
            "camera-b": {"rows": 200, "missing": 0, "counts": half.tolist(), "contribution": 0.94},
        },
    }


def _time(number: int) -> str:
    return (BEGAN + timedelta(minutes=10 * (number - 4))).isoformat()


def text(page: str) -> str:
    """What a reader sees, more or less."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)))
