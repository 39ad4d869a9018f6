"""What a verdict rests on, for people to look at."""

from collections.abc import Mapping
from typing import Any

from meguri_chassis.profiles import Profile
from meguri_monitoring.judging import Judged
from meguri_monitoring.profiling import Share


def evidence(judged: Judged, shares: Mapping[str, Share], reference: Profile) -> dict[str, Any]:
    return {}
