"""Tells people of episodes: one message to each target when one begins and one when it ends.

Who was told is in the log (notice-sent), so that neither a message that comes again nor another replica tells twice. Between
a delivery and its being said lies a moment: who dies in it has the message delivered again.
"""

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, islice, repeat

from prometheus_client import Counter
from sqlmodel import Session

from meguri_chassis.bus import RETRY_DELAYS, hears
from meguri_chassis.deciding import Decider
from meguri_chassis.log import EventLog, Message
from meguri_chassis.projection import Projection
from meguri_chassis.store import Database
from meguri_contracts.errors import PermanentError, TemporaryError
from meguri_contracts.events import OPENINGS, EpisodeResolved, Event, NoticeFailed, NoticeSent
from meguri_monitoring.episodes import telling
from meguri_monitoring.episodes.looks import Opening
from meguri_monitoring.episodes.telling import Links, Words
from meguri_monitoring.notices import sending
from meguri_monitoring.notices import store as notice_store
from meguri_monitoring.notices.sending import NotDelivered, Target, Unusable
from meguri_monitoring.notices.store import Began, Moment
from meguri_monitoring.settings import Settings
from meguri_monitoring.wording.wording import Language, say

logger = logging.getLogger(__name__)

NOTICES = Counter("meguri_notices", "Tries to tell somebody of an episode.", ["result"])


class SomeLeft(TemporaryError):
    """Some targets could not be told yet."""


class SomeGivenUp(PermanentError):
    """Some targets could not be told at all."""


@dataclass(frozen=True)
class Due:
    """Whom to tell what."""

    model: str
    episode: str
    moment: Moment
    words: Words
    targets: Sequence[Target] = ()
    later: Sequence[Target] = ()
    """Those who have not heard yet that the episode began: first things first."""


class Notifier:
    """Hears how episodes begin and end."""

    def __init__(
        self, *, log: EventLog, database: Database, projection: Projection, decider: Decider, settings: Settings
    ) -> None:
        self._log = log
        self._database = database
        self._projection = projection
        self._decider = decider
        self._settings = settings
        self._delivered: set[tuple[str, str]] = set()
        """Message and target of what was delivered and could not be said yet."""
        self._left: dict[tuple[str, Moment, str], str] = {}
        """By episode, moment and target why that one was not told when this replica tried."""

    def trouble(self) -> str | None:
        """Who could not be told, in words for an operator."""
        with self._database.read() as session:
            return self._waiting(session) or _given_up(session)

    def untold(self) -> str | None:
        """Whose episodes somebody could not be told of, if there were any now; the first such."""
        with self._database.read() as session:
            rows = notice_store.all_to_be_told(session)
        for row in rows:
            for target in sending.targets(row.urls):
                if why := sending.unusable(target.url, os.environ):
                    return f"{target.name} cannot be told of episodes of {row.model}: {why}"
        return None

    def _waiting(self, session: Session) -> str | None:
        for (episode, moment, target), reason in list(self._left.items()):
            if (moment, target) in {(one.moment, one.target) for one in notice_store.notices(session, episode)}:
                # Another replica saw to it.
                self._left.pop((episode, moment, target), None)
            else:
                return f"{target} could not be told yet that episode {episode} was {moment}: {reason}; tried again"
        return None

    @hears(*OPENINGS, EpisodeResolved)
    async def tell(self, event: Opening | EpisodeResolved, message: Message) -> None:
        """Tell all who are to know of it and do not. Raises SomeLeft, SomeGivenUp."""
        # What others said of it, whoever they were.
        await self._projection.reached(await self._log.last_sequence())
        due = await self._database.ask(lambda session: self._due(session, event, message))
        if due is None:
            return
        tries = await asyncio.gather(*(self._try(due, target, message) for target in due.targets))
        left = {target.name: "it was not told of the beginning yet" for target in due.later}
        given_up = {}
        for target, error in zip(due.targets, tries, strict=True):
            if isinstance(error, NotDelivered) and waited(message.deliveries) < self._settings.notice_patience:
                NOTICES.labels("retried").inc()
                left[target.name] = str(error)
            elif error:
                await self._give_up(due, target, error, message)
                given_up[target.name] = str(error)
        self._left |= {(due.episode, due.moment, name): reason for name, reason in left.items()}
        if left:
            raise SomeLeft(_listed(left))
        if given_up:
            raise SomeGivenUp(_listed(given_up))

    def _due(self, session: Session, event: Opening | EpisodeResolved, message: Message) -> Due | None:
        row = notice_store.notify(session, event.model)
        if row is None or message.sequence < row.since:
            return None
        began = (
            notice_store.opening(session, event) if isinstance(event, EpisodeResolved) else Began(event, message.time)
        )
        if began is None or began.event.action == "ignore":
            return None
        moment: Moment = "resolved" if isinstance(event, EpisodeResolved) else "opened"
        notices = notice_store.notices(session, event.episode)
        told = {one.target for one in notices if one.moment == moment and not one.error}
        targets = [one for one in sending.targets(row.urls) if one.name not in told]
        later: list[Target] = []
        if moment == "resolved" and _age(began) < self._settings.notice_patience:
            heard = {one.target for one in notices if one.moment == "opened"}
            later = [one for one in targets if one.name not in heard]
        words = self._words(event, began, message, row.language)
        now = [one for one in targets if one not in later]
        return Due(event.model, event.episode, moment, words, now, later)

    def _words(self, event: Opening | EpisodeResolved, began: Began, message: Message, language: Language) -> Words:
        links = self._links(event.episode, began.event, language)
        if not isinstance(event, EpisodeResolved):
            return telling.opened(event, began.time, links, language)
        return telling.resolved(began.event, began.time, message.time, event.reason, links, language)

    def _links(self, episode: str, opening: Opening, language: Language) -> Links:
        report = self._settings.report_url.replace("{episode}", episode)
        if language != "en":
            report += f"{'&' if '?' in report else '?'}language={language}"
        trace = opening.traces[0] if opening.traces else ""
        if trace and self._settings.trace_url:
            return Links(report, self._settings.trace_url.replace("{trace}", trace))
        # Evaluators are always traced, predictions only sometimes.
        if trace and opening.about == "measure":
            return Links(report, say("example.trace", language, trace=trace))
        if opening.samples:
            return Links(report, say("example.prediction", language, prediction=opening.samples[0]))
        return Links(report)

    async def _try(self, due: Due, target: Target, message: Message) -> NotDelivered | Unusable | None:
        """Tell one target and say so; return why that did not succeed."""
        key = (message.id, target.name)
        if key not in self._delivered:
            try:
                await sending.deliver(sending.expanded(target.url, os.environ), due.words)
            except (NotDelivered, Unusable) as error:
                logger.warning("%s was not told of episode %s: %s", target.name, due.episode, error)
                return error
            self._delivered.add(key)
            NOTICES.labels("sent").inc()
        sent = NoticeSent(
            model=due.model,
            episode=due.episode,
            moment=due.moment,
            target=target.name,
            subject=due.words.subject,
        )
        await self._say(sent, message)
        self._delivered.discard(key)
        return None

    async def _give_up(self, due: Due, target: Target, error: Exception, message: Message) -> None:
        NOTICES.labels("failed").inc()
        failed = NoticeFailed(
            model=due.model, episode=due.episode, moment=due.moment, target=target.name, error=str(error)
        )
        await self._say(failed, message)

    async def _say(self, event: Event, message: Message) -> None:
        await self._decider.carry_out(
            lambda _: [event], cause=message.id, journey=message.journey, after=message.sequence, hops=message.hops
        )


def waited(deliveries: int) -> float:
    """Return for how many seconds a message was tried again, by how often it was delivered."""
    return sum(islice(chain(RETRY_DELAYS, repeat(RETRY_DELAYS[-1])), deliveries - 1))


def _given_up(session: Session) -> str | None:
    row = notice_store.given_up(session)
    if row is None:
        return None
    told = f"{row.target} was not told that an episode of {row.model} was {row.moment}: {row.error}"
    return f"{told}; see `meguri dead`, and `meguri redrive` to send it again"


def _listed(reasons: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in reasons.items())


def _age(began: Began) -> float:
    return (datetime.now(UTC) - began.time).total_seconds()
