"""Says what follows from judged windows, from predictions that do not fit, and from silence."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

from sqlmodel import Session

from meguri_chassis import telemetry
from meguri_chassis.bus import hears
from meguri_chassis.deciding import Decider
from meguri_chassis.log import EventLog, Message
from meguri_chassis.projection import Projection
from meguri_chassis.store import Database, utc
from meguri_contracts import events
from meguri_contracts.errors import MeguriError, TemporaryError
from meguri_contracts.events import Event, SpecApplied
from meguri_contracts.names import derived_id
from meguri_contracts.spec import Monitor
from meguri_monitoring import store
from meguri_monitoring.episodes import episodes, sentences, silence, volume
from meguri_monitoring.episodes import store as episode_store
from meguri_monitoring.episodes.episodes import State
from meguri_monitoring.episodes.looks import INPUTS, OF_WINDOWS, Look
from meguri_monitoring.verdicts.judging import Judged
from meguri_monitoring.windows import store as window_store
from meguri_monitoring.windows.store import WindowRow

logger = logging.getLogger(__name__)

PAUSE_AT_MOST = 10.0
"""Seconds between tries to conclude while the log or the database is away."""
LOOK_BACK = 4
"""How many times `rule.windows` windows are looked back at: such without a verdict may lie between those that count."""
LOOK_AGAIN = timedelta(minutes=1)
"""After which it is looked whether a spec says otherwise of silence: another replica may have heard that."""
OF_A_WINDOW = (*OF_WINDOWS, "volume")
"""Kinds of episodes for which a window is evidence."""


class NotConcluded(TemporaryError):
    """What follows for a model could not be found out or said; others had their turn."""


class Concluder:
    """Takes judged windows in their order, carries out what `episodes` decides, and watches for silence.

    `newest` asks the broker for the sequence of the last message of a model's predictions, 0 when it has none: silence is only
    said when all of them were recorded.
    """

    def __init__(
        self,
        *,
        log: EventLog,
        database: Database,
        projection: Projection,
        decider: Decider,
        newest: Callable[[str], Awaitable[int]],
    ) -> None:
        self._log = log
        self._projection = projection
        self._database = database
        self._decider = decider
        self._newest = newest
        self._something = asyncio.Event()
        self._to_listen: set[str] = set()
        """Models of which it is to be seen when their silence begins, or whether it is over."""
        self._due: dict[str, datetime] = {}
        """By model when to look for silence, which begins later if something is heard until then."""
        self._calm: set[str] = set()
        """Models that were not silent when they were last looked at: that they are heard is no news."""
        self._trouble: str | None = None

    def trouble(self) -> str | None:
        """Why nothing is concluded at the moment, in words for an operator."""
        return self._trouble

    def look(self) -> None:
        """A window was judged, here or by a replica that has died since."""
        self._something.set()

    def heard(self, models: Iterable[str]) -> None:
        """Predictions of models were recorded; `episode_store.keep_heard` has kept of when the last one is."""
        if news := set(models) - self._calm:
            self._listen_to(news)

    async def refused(self, model: str, version: int, *, column: str, reason: str, sequence: int, rows: int) -> None:
        """Predictions do not fit the reference of their version: they were set aside and are not counted."""
        await self._database.change(
            lambda session: episode_store.keep_refused(session, model, version, sequence),
        )
        look = Look(
            about="schema",
            version=version,
            subject=column,
            place=str(sequence),
            moved=True,
            value=rows,
            window=events.Window(first=sequence, last=sequence, rows=rows),
            text=sentences.refused(reason),
            runs=1,
        )
        cause = derived_id(model, "refused", str(version), str(sequence))
        await self._carry_out(model, [look], cause, datetime.now(UTC))

    @hears(SpecApplied)
    async def watch_otherwise(self, applied: SpecApplied, message: Message) -> None:
        """What a new spec does not have watched is over, and silence may be something else."""
        await self._decider.carry_out(
            lambda session: episodes.unwatched(store.state(session, applied.model), episodes.watched(applied.spec)),
            cause=message.id,
            journey=message.journey,
            after=message.sequence,
            hops=message.hops,
        )
        self._listen_to([applied.model])

    async def run(self) -> None:
        """Conclude for ever."""
        await self._until_done(self._begin)
        while True:
            await self._until_something()
            await self._until_done(self._conclude)

    async def _begin(self) -> None:
        await self._projection.reached(await self._log.last_sequence())
        self._listen_to(await self._database.ask(episode_store.heard_models))
        self._something.set()

    def _listen_to(self, models: Iterable[str]) -> None:
        self._to_listen.update(models)
        self._something.set()

    async def _until_something(self) -> None:
        """Wait until something was judged or heard, or the first silence is due."""
        first = min(self._due.values(), default=None)
        seconds = None if first is None else max(0.0, (first - datetime.now(UTC)).total_seconds())
        try:
            async with asyncio.timeout(seconds):
                await self._something.wait()
        except TimeoutError:
            return

    async def _conclude(self) -> None:
        """Conclude what there is. What fails of one model comes after all the others; the last of these errors is raised."""
        self._something.clear()
        failed: dict[str, Exception] = {}
        while await self._database.ask(partial(window_store.undecided, but=failed, limit=1)):
            row = await self._database.change(partial(_first_that_speaks, but=failed))
            if row is None:
                continue
            try:
                await self._conclude_from(row)
            except Exception as error:  # noqa: BLE001 - raised in the end
                failed[row.model] = error
        now = datetime.now(UTC)
        for model in sorted(self._to_listen | {model for model, due in self._due.items() if due <= now}):
            # Before: what is heard meanwhile is looked at once more.
            self._to_listen.discard(model)
            try:
                await self._listen(model)
            except Exception as error:  # noqa: BLE001 - raised in the end
                self._to_listen.add(model)
                failed[model] = error
        if failed:
            model, why = failed.popitem()
            raise NotConcluded(f"{model}: {why}") from why

    async def _conclude_from(self, row: WindowRow) -> None:
        cause = _cause(row)
        before = await self._database.ask(partial(_open, row))
        hops = (await self._database.ask(lambda session: store.state(session, row.model))).hops
        with telemetry.processing(
            "judged-window",
            [row.context or {}],
            journey=cause,
            event_id=cause,
            prompt=True,
            attributes={"meguri.model": row.model, "meguri.model.version": row.version},
        ):
            await self._decider.carry_out(partial(_follows, row), cause=cause, journey=cause, hops=hops)
            await self._decider.settled()
        await self._database.change(partial(_keep, row, before))

    async def _listen(self, model: str) -> None:
        """Say that a model is silent, or no longer; and see when that has to be looked at again."""
        state, rule, last = await self._database.ask(partial(_standing, model))
        due = silence.due(last, rule) if last else None
        now = datetime.now(UTC)
        if state.champion is None or last is None or due is None:
            self._due[model] = now + LOOK_AGAIN
            self._note_calm(model, state.champion is not None and last is not None)
            return
        self._note_calm(model, now < due)
        if (now >= due and await self._all_is_recorded(model, last)) or (now < due and state.open("silence")):
            look = silence.look(state.champion, last, rule, now)
            await self._carry_out(model, [look], derived_id(model, "silence", last.isoformat()), now)
        # One that is silent speaks again where it is recorded, which may be another replica.
        self._due[model] = min(due, now + LOOK_AGAIN) if now < due else now + (due - last)

    def _note_calm(self, model: str, calm: bool) -> None:
        (self._calm.add if calm else self._calm.discard)(model)

    async def _all_is_recorded(self, model: str, last: datetime) -> bool:
        """Whether the prediction made at `last` is still the last one of a model."""
        # First what the broker has, then what of it was recorded: what comes in between is no reason to say anything.
        newest = await self._newest(model)
        recorded, heard = await self._database.ask(
            lambda session: (store.position(session) or 0, episode_store.heard(session, model))
        )
        return newest <= recorded and heard == last

    async def _carry_out(self, model: str, looks: Sequence[Look], cause: str, now: datetime) -> None:
        hops = (await self._database.ask(lambda session: store.state(session, model))).hops
        await self._decider.carry_out(partial(follows, model, looks, now), cause=cause, journey=cause, hops=hops)

    async def _until_done(self, step: Callable[[], Awaitable[None]]) -> None:
        pause = 0.1
        while True:
            try:
                await step()
            except Exception as error:
                # Whatever it is: windows are concluded in their order, none is passed over.
                self._trouble = f"nothing is concluded from windows: {error}"
                logger.log(
                    logging.WARNING if isinstance(error.__cause__ or error, MeguriError) else logging.ERROR,
                    self._trouble,
                    exc_info=error,
                )
                await asyncio.sleep(pause)
                pause = min(pause * 2, PAUSE_AT_MOST)
            else:
                self._trouble = None
                return


def follows(model: str, looks: Sequence[Look], now: datetime, session: Session) -> Sequence[Event]:
    """Return what follows from the last of the looks at one subject, oldest first."""
    return episodes.decide_look(store.state(session, model), looks, store.rule(session, model), now)


def inputs_moved(session: Session, model: str) -> bool | None:
    """Whether inputs moved in the last windows of a model's champion; None without a window that was judged."""
    state, rule = store.state(session, model), store.rule(session, model)
    if state.champion is None:
        return None
    latest = [
        one for one in window_store.latest(session, model, state.champion, state.rollout, rule.windows) if one.judged
    ]
    return any(one.moved(about) for one in latest for about in INPUTS) if latest else None


def _first_that_speaks(session: Session, but: Collection[str]) -> WindowRow | None:
    """Return the first of the next judged windows from which something follows, or which is evidence; those before it say
    nothing. Without the windows of some models.
    """
    known: dict[str, tuple[State, Monitor]] = {}
    for row in window_store.undecided(session, but):
        if row.model not in known:
            # After the windows: an episode that one of them rests on is known then.
            known[row.model] = store.state(session, row.model), store.rule(session, row.model)
        try:
            if not _is_quiet(row, *known[row.model], session):
                return row
        except (MeguriError, ValueError):
            # Whoever concludes from it meets that again, where it keeps no other model waiting.
            return row
        window_store.mark_decided(session, row.id or 0)
    return None


def _is_quiet(row: WindowRow, state: State, rule: Monitor, session: Session) -> bool:
    # Most windows are of this kind, and need not be held against those before.
    at_rest = not state.episodes and rule.volume is None and row.rollout <= state.rollout and not row.moved
    return at_rest or not (_open(row, session) or _follows(row, session))


def _cause(row: WindowRow) -> str:
    """The same for the same predictions, however often they were counted."""
    return derived_id(row.model, "window", str(row.version), str(row.rollout), str(row.number))


def _follows(row: WindowRow, session: Session) -> Sequence[Event]:
    state, rule = store.state(session, row.model), store.rule(session, row.model)
    if row.rollout > state.rollout:
        raise store.Behind(f"a window of {row.model} is of rollout {row.rollout}, the tables know {state.rollout}")
    if row.rollout < state.rollout:
        return []
    back = max(LOOK_BACK * rule.windows, 0 if rule.volume is None else volume.HISTORY)
    windows = window_store.judged_up_to(session, row, back)
    refused = episode_store.refused(session, row.model, row.version)
    return episodes.decide(state, windows, rule, _ended(windows[-1]), refused)


def _ended(window: Judged) -> datetime:
    """When a window ended: the same when it is decided on again. Those of before do not say."""
    return utc(datetime.fromisoformat(window.ended)) if window.ended else datetime.now(UTC)


def _open(row: WindowRow, session: Session) -> set[str]:
    """The open episodes that a window is evidence for."""
    state = store.state(session, row.model)
    return {one.id for one in state.episodes if one.about in OF_A_WINDOW and one.version == row.version}


def _keep(row: WindowRow, before: set[str], session: Session) -> None:
    """Keep what an episode rests on: each window of it from the first that moved, the one that ended it included."""
    window_store.mark_decided(session, row.id or 0)
    for episode in before | _open(row, session):
        begun = episode_store.has_evidence(session, episode)
        count = 1 if begun else store.rule(session, row.model).windows
        for one in window_store.rows_up_to(session, row, count):
            episode_store.keep_evidence(session, episode, one.verdict, one.evidence)
            window_store.mark_episode(session, one.id or 0, episode)


def _standing(model: str, session: Session) -> tuple[State, Monitor, datetime | None]:
    return store.state(session, model), store.rule(session, model), episode_store.heard(session, model)
