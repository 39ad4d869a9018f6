"""Times as operators type them."""

import re
from datetime import UTC, datetime, timedelta

from meguri.client import MeguriClientError

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def moment(text: str) -> datetime:
    """Return a time: ISO 8601, in UTC if it names no zone, or as long ago as `10m`, `2h` or `3d` say."""
    if ago := re.fullmatch(r"(\d{1,5})([smhdw])", text):
        return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise MeguriClientError(f"{text!r} is no time: write 2026-01-31T12:00 (UTC), or 10m, 2h, 3d ago") from error
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def ago(time: datetime) -> str:
    """Return how long ago a time is, in its largest unit."""
    seconds = max((datetime.now(UTC) - time).total_seconds(), 0)
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.0f}s"
