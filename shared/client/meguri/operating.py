"""Commands for who keeps meguri going: is anything stuck, what happened, put it right, make it again."""

import asyncio
import base64
from collections import deque
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from meguri import dead_letters, editing, following, redriving, show_operation
from meguri.answering import Json, answer, complain, console, fail, give, line
from meguri.client import Meguri, MeguriClientError, Unreachable, who
from meguri.dead_letters import Letter
from meguri.following import Seen
from meguri.streams import BrokerRefused, connected, lag
from meguri.times import moment
from meguri_contracts.topology import LOG, PORTS

registry = typer.Typer(no_args_is_help=True, help="What the registry knew.")

Consumer = Annotated[str | None, typer.Option(help="Of one consumer only.")]
Time = Annotated[
    str | None, typer.Option(metavar="TIME", help="ISO 8601 (UTC if no zone is named), or 10m, 2h, 3d ago.")
]


def add_to(app: typer.Typer) -> None:
    """Add these commands to an application."""
    for command in (status, dead, redrive, events, replay):
        app.command()(answer(command))
    app.add_typer(registry, name="registry")


def status(as_json: Json = False) -> None:
    """Is anything stuck? What each service waits for, how far it is behind the log, what is parked, what consumers have to do.

    Exit code 1 when a service is not ready, or the broker does not answer from here.
    """
    with Meguri() as meguri:
        services = [
            meguri.health(service) | {"log": meguri.standing(service)} for service in PORTS if service != "console"
        ]
    found: dict[str, Any] = {"services": services, "broker": None, "consumers": []}
    try:
        found["consumers"] = asyncio.run(lag())
    except (Unreachable, BrokerRefused) as error:
        found["broker"] = str(error)
    give(as_json, found, show_operation.status)
    if found["broker"] or not all(one["ready"] for one in services):
        raise typer.Exit(1)


def dead(
    consumer: Consumer = None,
    everything: Annotated[bool, typer.Option("--all", help="Also those that were sent back.")] = False,
    as_json: Json = False,
) -> None:
    """List the dead letters that nobody sent back: messages that a service could not handle, and why."""

    async def read() -> list[Letter]:
        async with connected() as js:
            return await dead_letters.letters(js, consumer, redriven=everything)

    found = asyncio.run(read())
    give(as_json, [letter.as_dict() for letter in found], show_operation.letters)


def redrive(
    id: Annotated[str | None, typer.Argument(help="Of the dead letter, as `meguri dead` shows it.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that `meguri dead` lists.")] = False,
    consumer: Consumer = None,
    edit: Annotated[bool, typer.Option("--edit", help="Put the body right in $EDITOR first.")] = False,
    body: Annotated[Path | None, typer.Option(help="Put the body right: it is in this file.")] = None,
    as_json: Json = False,
) -> None:
    """Send a dead letter back to where it came from: every consumer of that stream hears the message again.

    As it was, it keeps its id, so whoever dealt with it before leaves it at that; so does what nobody could read. What could
    be read and gets another body is another event: it gets an id of its own and names the old one as its cause (ce-causeid),
    because tables that have the old event would pass over the new one. What was interrupted can be done again.
    """
    if (id is None) != everything:
        fail("exactly one of ID and --all is needed")
    if (edit or body) and (everything or (edit and body)):
        fail("--edit or --body goes with one ID")
    done, failed = asyncio.run(_redrive(id, consumer, edit, body))
    if done or as_json or not failed:
        give(as_json, done, show_operation.redriven)
    for reason in failed:
        complain(reason)
    if failed:
        raise typer.Exit(1)


async def _redrive(
    id_: str | None, consumer: str | None, edit: bool, file: Path | None
) -> tuple[list[dict[str, Any]], list[str]]:
    async with connected() as js:
        letters = [await dead_letters.letter(js, id_)] if id_ is not None else await dead_letters.letters(js, consumer)
        body = None
        if edit or file:
            body = await _another_body(js, letters[0], file)
        done, failed = [], []
        for letter in letters:
            try:
                said = await redriving.redrive(js, letter, actor=who(), body=body)
            except MeguriClientError as error:
                failed.append(str(error))
            else:
                done.append({"id": letter.id, **said.model_dump(mode="json")})
        return done, failed


async def _another_body(js: Any, letter: Letter, file: Path | None) -> bytes | None:
    if letter.stream != LOG:
        raise MeguriClientError(f"{letter.id} is no event: it can only be sent back as it was")
    if letter.redriven:
        return None
    if file:
        try:
            return editing.require_json(await asyncio.to_thread(file.read_bytes))
        except OSError as error:
            raise MeguriClientError(f"the new body cannot be read, so nothing was sent: {error}") from error
    before = await redriving.original(js, letter)
    return await asyncio.to_thread(editing.edited, before.body)


def events(
    kind: Annotated[str, typer.Option("--type", help="Only of this type, like data-arrived.")] = "*",
    key: Annotated[str, typer.Option(help="Only of this dataset, model or consumer.")] = ">",
    producer: Annotated[str | None, typer.Option(help="Only what this one said.")] = None,
    journey: Annotated[str | None, typer.Option(help="Only what followed from this event.")] = None,
    since: Time = None,
    until: Time = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with what is said from now on.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="The last so many; with --follow the first.")] = None,
    bodies: Annotated[bool, typer.Option("--bodies", help="With what they say.")] = False,
    as_json: Json = False,
) -> None:
    """Read the log: what was said, about what, by whom, because of what. With --json a line each."""

    def wanted(seen: Seen) -> bool:
        # The broker takes a time after the year 2262 for none.
        early = begin is not None and seen.time < begin
        return not early and producer in (None, seen.source) and journey in (None, seen.journey)

    def shown(seen: Seen) -> None:
        line(_event(seen, bodies)) if as_json else show_operation.event(console, seen, bodies)

    kind = kind.removeprefix("meguri.").partition(".v")[0]
    if any(not part or set(part) & set(" \t\r\n") for part in (kind, key)):
        fail("a type or a key has no spaces")
    begin, end = moment(since) if since else None, moment(until) if until else None

    async def read() -> None:
        source = following.follow if follow else following.said
        async with aclosing(source(kind, key, since=begin)) as found:
            chosen = (seen async for seen in found if wanted(seen))
            async for seen in _last(chosen, limit, end) if limit and not follow else _first(chosen, limit, end):
                shown(seen)

    asyncio.run(read())


async def _first(found: AsyncIterator[Seen], limit: int | None, end: datetime | None) -> AsyncIterator[Seen]:
    count = 0
    async for seen in found:
        if end and seen.time > end:
            return
        yield seen
        count += 1
        if count == limit:
            return


async def _last(found: AsyncIterator[Seen], limit: int | None, end: datetime | None) -> AsyncIterator[Seen]:
    kept = deque([seen async for seen in _first(found, None, end)], maxlen=limit)
    for seen in kept:
        yield seen


def _event(seen: Seen, bodies: bool) -> dict[str, Any]:
    found = {name: value for name, value in vars(seen).items() if name not in ("event", "body")}
    if not bodies:
        return found
    return found | ({"event": seen.event} if seen.event else {"body_base64": base64.b64encode(seen.body).decode()})


def replay(
    service: Annotated[str, typer.Argument(help="Whose tables: ingest, training, registry or monitoring.")],
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit code 1 if the tables are wrong.")
    ] = False,
    until: Annotated[
        int | None, typer.Option(help="Change nothing; tell the digest that the tables had at this sequence.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make the tables of a service again from the log, while it runs; others see the old ones until the new ones are whole.

    Interrupted before the end, nothing has changed.
    """
    done: dict[str, Any] = {}
    terminal = Console(stderr=True)
    bar = Progress(console=terminal, transient=True, disable=not terminal.is_terminal)
    with Meguri() as meguri, bar:
        task = bar.add_task(f"reading the log for {service}")
        for done in meguri.replay(service, keep=not check and until is None, until=until):
            bar.update(task, total=done["until"] or 1, completed=done["position"])
    if "after" not in done:
        fail(f"{service} ended before the replay was whole: nothing was changed, its log says why")
    done |= {"service": service, "kept": not check and until is None}
    give(as_json, done, show_operation.past_digest if until is not None else show_operation.replayed)
    if check and until is None and done["differ"]:
        raise typer.Exit(1)


@registry.command("at")
@answer
def at(
    time: Annotated[str, typer.Argument(help="ISO 8601 (UTC if no zone is named), or 10m, 2h, 3d ago.")],
    model: Annotated[str | None, typer.Argument(help="Of one model only.")] = None,
    as_json: Json = False,
) -> None:
    """What the registry knew at a time: specs, champions, versions with their runs and verdicts."""
    when: datetime = moment(time)
    with Meguri() as meguri:
        give(as_json, meguri.known_at(when, model), show_operation.known_at)
