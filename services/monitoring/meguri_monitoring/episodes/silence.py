"""Whether nobody asks for predictions any more."""

from datetime import datetime, timedelta

from meguri_contracts.spec import Monitor
from meguri_monitoring.episodes import sentences
from meguri_monitoring.episodes.looks import Look


def due(last: datetime, rule: Monitor) -> datetime | None:
    """Return when it has been silent for too long since the last prediction; None where silence is not watched."""
    return None if rule.silence is None else last + timedelta(seconds=rule.silence)


def look(champion: int, last: datetime, rule: Monitor, now: datetime) -> Look:
    """Return what there is to say `now` of the time since the last prediction: the same of a silence, whoever says it."""
    seconds = (now - last).total_seconds()
    return Look(
        about="silence",
        version=champion,
        subject="predictions",
        place=last.isoformat(),
        moved=rule.silence is not None and seconds >= rule.silence,
        value=seconds,
        expected=rule.silence or 0.0,
        text=sentences.silence(seconds),
        back="predictions are asked for again",
        runs=1,
    )
