"""Messages to people by way of Apprise: where a URL leads, what of it may be shown, and one try to deliver."""

import asyncio
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote

from apprise import Apprise, AppriseAsset, NotifyBase, NotifyFormat

from meguri_contracts.errors import PermanentError, TemporaryError
from meguri_contracts.spec import NOTIFY_PREFIX, NOTIFY_VARIABLE
from meguri_monitoring.episodes.telling import Words

SEND_TIMEOUT = 60.0
"""Seconds for one try."""
SHORTEST_SECRET = 4
"""Letters from which on a part of a URL is cut out of what is said about it."""

NO_URL = "this is no URL that Apprise can send to: its scheme is unknown, or a part is missing or wrong"

_ASSET = AppriseAsset(app_id="meguri", app_desc="meguri", app_url="", image_url_mask="", image_url_logo="")
# What it logs has URLs in it.
logging.getLogger("apprise").propagate = False


class Unusable(PermanentError):
    """Nothing can be sent to a URL as it stands."""


class NotDelivered(TemporaryError):
    """A message did not get to where it was to go."""


@dataclass(frozen=True)
class Target:
    """A URL of a spec, and what it is called where everybody can read it: no user, password, token, path or query."""

    name: str
    url: str


def targets(urls: Sequence[str]) -> list[Target]:
    """Name the URLs of a spec, those that would be called alike with a number."""
    found: dict[str, Target] = {}
    for place, url in enumerate(urls):
        name = _name(url) or f"notify.urls[{place}]"
        same = sum(one.partition(" #")[0] == name for one in found)
        name = f"{name} #{same + 1}" if same else name
        found[name] = Target(name, url)
    return list(found.values())


def unusable(url: str, environment: Mapping[str, str]) -> str:
    """Say why nothing can be sent to a URL of a spec as things are; empty if it can be tried."""
    try:
        return "" if _is_usable(expanded(url, environment)) else NO_URL
    except Unusable as error:
        return str(error)


def expanded(url: str, environment: Mapping[str, str]) -> str:
    """Put variables in their places: as they are where one is the whole URL, else quoted. Raises Unusable."""
    if whole := NOTIFY_VARIABLE.fullmatch(url):
        return _value(whole[1], environment)
    return NOTIFY_VARIABLE.sub(lambda found: quote(_value(found[1], environment), safe=""), url)


async def deliver(url: str, words: Words, timeout: float = SEND_TIMEOUT) -> None:  # noqa: ASYNC109 - it is Apprise's own
    """Try once to send a message to a URL whose variables are in their places. Raises Unusable, NotDelivered."""
    # The first time all plugins are loaded.
    plugin = await asyncio.to_thread(_plugin, url)
    if plugin is None:
        raise Unusable(NO_URL)
    sender = Apprise(asset=_ASSET)
    sender.add(plugin)
    result = await sender.async_notify(
        title=words.subject,
        body=words.body,
        body_format=NotifyFormat.TEXT,
        timeout=timeout,
        log_level=logging.WARNING,
    )
    if not result:
        said = [entry.message for entry in result.logs() if entry.level in ("WARNING", "ERROR", "CRITICAL")]
        raise NotDelivered(_without_secrets("; ".join(dict.fromkeys(said)) or "not accepted, without a reason", url))


@lru_cache(maxsize=1000)
def _is_usable(url: str) -> bool:
    return _plugin(url) is not None


def _plugin(url: str) -> NotifyBase | None:
    return Apprise.instantiate(url, asset=_ASSET)


@lru_cache(maxsize=1000)
def _name(url: str) -> str | None:
    """Scheme, host and port; the scheme alone where a token stands in the host's place; None if that cannot be told."""
    if NOTIFY_VARIABLE.fullmatch(url):
        return url
    plugin = _plugin(NOTIFY_VARIABLE.sub(lambda found: found[1], url))
    if plugin is None:
        return None
    scheme = plugin.url(privacy=True).partition("://")[0]  # type: ignore[no-untyped-call]
    host = plugin.host if "host" in plugin.template_tokens else None
    port = f":{plugin.port}" if host and plugin.port else ""
    return f"{scheme}://{host or ''}{port}"


def _value(name: str, environment: Mapping[str, str]) -> str:
    if not name.startswith(NOTIFY_PREFIX):
        raise Unusable(
            f"${{{name}}} may not be used here: names of variables for notify.urls begin with {NOTIFY_PREFIX}"
        )
    if not environment.get(name):
        raise Unusable(f"the variable {name} is not set where monitoring runs")
    return environment[name]


def _without_secrets(text: str, url: str) -> str:
    shown = (_name(url) or "").partition("://")[2].partition(":")[0]
    for part in sorted(set(re.split(r"[/:@?&=#,;]+", url)), key=len, reverse=True):
        if len(part) >= SHORTEST_SECRET and part != shown:
            text = text.replace(part, "…")
    return text
