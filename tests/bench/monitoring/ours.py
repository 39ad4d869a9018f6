"""Our side: profiles of a frame and what the rule says of each column."""

import polars as pl

from meguri_chassis.profiles import Profile, profile_of
from meguri_contracts.spec import Monitor
from meguri_monitoring import drift

DEFAULT = Monitor()
COMPATIBLE = Monitor(rule="evidently")


def reference_of(frame: pl.DataFrame) -> Profile:
    """Return what training would have written down of a frame."""
    numbers = _numbers(frame)
    return profile_of(numbers.columns, numbers.to_numpy())


def profile(reference: Profile, frame: pl.DataFrame) -> Profile:
    """Return the profile of live rows."""
    live = reference.like()
    live.update(_numbers(frame).to_numpy())
    return live


def drifted(reference: Profile, live: Profile, rule: Monitor) -> dict[str, bool]:
    """Return by column whether it has drifted; empty without enough rows."""
    return {one.feature: one.drifted for one in drift.compare(reference, live, rule).features}


def _numbers(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select(pl.selectors.numeric())
