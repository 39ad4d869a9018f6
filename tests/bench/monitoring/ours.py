"""Our side: profiles of frames, and what the rule says of each column."""

import polars as pl
import polars.selectors as cs

from meguri_chassis.profiles import Profile, profile_of
from meguri_contracts.events import Window
from meguri_contracts.spec import Monitor
from meguri_monitoring.profiles import profiling
from meguri_monitoring.profiles.profiling import Share
from meguri_monitoring.verdicts import judging
from meguri_monitoring.verdicts.judging import Judged

DEFAULT = Monitor()
COMPATIBLE = Monitor(rule="evidently")


def reference_of(frame: pl.DataFrame) -> Profile:
    """Return what training would have written down of a frame."""
    numbers = frame.select(cs.numeric())
    return profile_of(
        numbers.columns,
        numbers.to_numpy(),
        {text.name: dict(text.value_counts().iter_rows()) for text in frame.select(cs.string())},
    )


def judge(reference: Profile, frame: pl.DataFrame, rule: Monitor) -> Judged:
    """Return what is said of live rows."""
    shares = {"bench": Share(profiling.profile(reference, frame))}
    return judging.judge(1, 0, Window(first=1, last=1, rows=frame.height), shares, reference, rule)


def drifted(reference: Profile, frame: pl.DataFrame, rule: Monitor) -> dict[str, bool]:
    """Return by column whether its distribution has moved."""
    return {one.subject: one.moved for one in judge(reference, frame, rule).findings if one.about == "drift"}
