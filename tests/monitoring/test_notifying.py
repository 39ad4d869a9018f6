"""Messages about episodes, from the log to real servers of mail and of the web."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest

from meguri.dead_letters import letter
from meguri.redriving import redrive
from meguri_contracts.events import (
    EpisodeResolved,
    EpisodeWorsened,
    NoticeFailed,
    NoticeSent,
)
from meguri_contracts.topology import MONITORING_NOTICES
from meguri_monitoring.app import build
from meguri_monitoring.notices import notifying, sending
from meguri_monitoring.settings import Settings
from tests.conftest import Broker, free_port, until
from tests.monitoring.episodes_of import TRACE, opening
from tests.monitoring.replica import Replica
from tests.monitoring.sinks import Mailbox, mail_server, spec, web_server
from tests.services import Wire, name, running, wire


def mail_url(port: int) -> str:
    return f"mailto://127.0.0.1:{port}/ops@example.com?from=meguri@example.com&mode=insecure"


@dataclass(frozen=True)
class Told:
    """A model whose episodes somebody is told of."""

    wire: Wire
    http: httpx.AsyncClient
    model: str

    async def begins(self, episode: str, **given: Any) -> int:
        return await self.wire.say(opening(self.model, episode, **given))

    async def ends(self, episode: str) -> int:
        return await self.wire.say(EpisodeResolved(model=self.model, version=3, episode=episode, reason="quiet again"))

    async def said(self, kind: type[NoticeSent | NoticeFailed], count: int = 1) -> list[Any]:
        async def enough() -> list[Any] | None:
            found = await self.wire.said(kind, self.model)
            return found if len(found) >= count else None

        return await until(enough, f"{count} {kind.kind()}")

    async def warnings(self) -> str:
        return " ".join((await self.http.get("/health/ready")).json()["warnings"])

    async def idle(self) -> None:
        """Wait until all that was said was dealt with."""

        async def done() -> bool:
            info = await self.wire.js.consumer_info("MEGURI", MONITORING_NOTICES.name)
            return not info.num_pending and not info.num_ack_pending

        await until(done, "everybody told")


@asynccontextmanager
async def telling(broker: Broker, folder: Any, *urls: str, replicas: int = 1, **settings: Any) -> AsyncIterator[Told]:
    model = name("m")
    given = {"nats_url": broker.url, "database_url": f"sqlite:///{folder}/monitoring.db", "var": folder} | settings
    async with AsyncExitStack() as stack:
        services = [
            await stack.enter_async_context(running(build(Settings.model_validate(given | {"replica": f"r-{n}"}))))
            for n in range(replicas)
        ]
        beside = await stack.enter_async_context(wire(broker))
        await beside.apply(spec(model, *urls))
        yield Told(beside, services[0], model)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow each other at once."""
    monkeypatch.setattr("meguri_chassis.bus.RETRY_DELAYS", (0.05, 0.1, 0.1, 0.1))


async def test_an_episode_is_one_mail_when_it_begins_and_one_when_it_ends(broker, tmp_path):
    port, hook = free_port(), free_port()
    async with telling(broker, tmp_path, mail_url(port), f"json://127.0.0.1:{hook}/secret") as told:
        with mail_server(port) as mailbox, web_server(hook) as posted:
            await told.begins("e-1")
            worse = EpisodeWorsened(
                model=told.model, version=3, episode="e-1", about="drift", subject="x", before=1, now=2
            )
            await told.wire.say(worse)
            await told.said(NoticeSent, 2)
            await told.ends("e-1")
            sent = await told.said(NoticeSent, 4)
            await told.idle()

    assert mailbox.subjects == [
        f"[meguri] {told.model}: change in the incoming data (brightness)",
        f"[meguri] {told.model}: over: change in the incoming data (brightness)",
    ]
    assert "camera-b" in mailbox.texts[0]
    assert "/episodes/e-1/report" in mailbox.texts[0]
    assert "Quiet again." in mailbox.texts[1]
    assert [one["title"] for one in posted] == mailbox.subjects
    assert {(one.moment, one.target) for one in sent} == {
        (moment, target)
        for moment in ("opened", "resolved")
        for target in (f"mailto://127.0.0.1:{port}", f"json://127.0.0.1:{hook}")
    }


@pytest.mark.parametrize(
    ("about", "url", "example"),
    [
        ("drift", "", "prediction p-1 (`meguri why p-1`)"),
        ("measure", "", f"trace {TRACE} (`meguri trace {TRACE}`)"),
        ("drift", "http://jaeger/trace/{trace}", f"http://jaeger/trace/{TRACE}"),
    ],
)
async def test_a_message_leads_to_an_example_that_can_be_looked_at(broker, tmp_path, about, url, example):
    hook = free_port()
    async with telling(broker, tmp_path, f"json://127.0.0.1:{hook}/hook", trace_url=url) as told:
        with web_server(hook) as posted:
            await told.begins("e-1", about=about)
            await told.said(NoticeSent)

        assert f"An example: {example}" in posted[0]["message"]


async def test_nobody_is_told_of_what_is_to_be_ignored(broker, tmp_path):
    async with telling(broker, tmp_path, mail_url(port := free_port())) as told:
        with mail_server(port) as mailbox:
            await told.begins("e-1", action="ignore")
            await told.ends("e-1")
            await told.begins("e-2")
            await told.said(NoticeSent)
            await told.idle()

    assert len(mailbox.mails) == 1


async def test_a_message_in_japanese_arrives_whole(broker, tmp_path):
    async with telling(broker, tmp_path) as told:
        await told.wire.apply(spec(told.model, mail_url(port := free_port()), language="ja"), 2)
        with mail_server(port) as mailbox:
            await told.begins("e-1", feature="明るさ", producer="カメラ二号")
            await told.said(NoticeSent)

    assert mailbox.subjects == [f"【meguri】{told.model}：入力データの変化（明るさ）を検知しました"]
    assert "変化の 94% は「カメラ二号」から届いたデータによるものです。" in mailbox.texts[0]
    assert "/episodes/e-1/report?language=ja" in mailbox.texts[0]


async def test_a_server_that_is_down_is_tried_until_it_is_up_and_the_others_hear_once(broker, tmp_path, soon):
    port, hook = free_port(), free_port()
    async with telling(broker, tmp_path, mail_url(port), f"json://127.0.0.1:{hook}/x") as told:
        with web_server(hook) as posted:
            await told.begins("e-1")
            await told.said(NoticeSent)

            async def warned() -> str | None:
                found = await told.warnings()
                return found if "could not be told yet" in found else None

            assert f"mailto://127.0.0.1:{port}" in await until(warned)
            await told.ends("e-1")
            with mail_server(port) as mailbox:
                await told.said(NoticeSent, 4)
                await told.idle()
            assert await told.warnings() == ""

    assert len(posted) == 2
    assert ["over" in subject for subject in mailbox.subjects] == [False, True]


async def test_a_message_that_is_given_up_is_parked_and_can_be_sent_again(broker, tmp_path, soon, monkeypatch):
    monkeypatch.setattr("meguri_monitoring.notices.notifying.RETRY_DELAYS", (10.0,))
    hook, port = free_port(), free_port()
    urls = (mail_url(port), f"json://127.0.0.1:{hook}/x")
    async with telling(broker, tmp_path, *urls, notice_patience=15) as told:
        with web_server(hook) as posted:
            sequence = await told.begins("e-1")
            (failed,) = await told.said(NoticeFailed)
            await told.idle()
            assert (failed.target, failed.moment) == (f"mailto://127.0.0.1:{port}", "opened")
            assert "onnection error" in failed.error
            assert len(await told.wire.parked(MONITORING_NOTICES.name)) == 1

            async def warned() -> bool:
                return "was not told that an episode" in await told.warnings()

            await until(warned)
            with mail_server(port) as mailbox:
                await redrive(
                    told.wire.js, await letter(told.wire.js, f"{MONITORING_NOTICES.name}/{sequence}"), actor="ada"
                )
                await told.said(NoticeSent, 2)
                await told.idle()

            async def quiet() -> bool:
                return await told.warnings() == ""

            await until(quiet)

    assert len(mailbox.mails) == 1
    assert len(posted) == 1


async def test_a_url_that_cannot_be_used_is_given_up_at_once_and_the_rest_is_told(broker, tmp_path):
    hook = free_port()
    urls = ("telepathy://anna:hunter2@x", "mailto://u:${NOTIFY_NOWHERE}@localhost", f"json://127.0.0.1:{hook}/x")
    async with telling(broker, tmp_path, *urls) as told:
        with web_server(hook) as posted:
            await told.begins("e-1")
            failed = await told.said(NoticeFailed, 2)
            await told.said(NoticeSent)
            await told.idle()
        letters = await told.wire.parked(MONITORING_NOTICES.name)
        warnings = await told.warnings()

    assert len(posted) == 1
    errors = {one.target: one.error for one in failed}
    assert "no URL that Apprise can send to" in errors["notify.urls[0]"]
    assert "NOTIFY_NOWHERE is not set" in errors["mailto://localhost:25"]
    assert len(letters) == 1
    assert "hunter2" not in str(errors) + str(letters) + warnings


async def test_who_could_not_be_told_is_warned_of_before_anything_happens(broker, tmp_path, monkeypatch):
    monkeypatch.setenv("NOTIFY_THERE", "json://127.0.0.1/hook")
    async with telling(broker, tmp_path, "${NOTIFY_THERE}") as told:
        sequence = await told.wire.apply(spec(told.model, "${NOTIFY_THERE}", "${NOTIFY_NOWHERE}"), 2)
        asked = await told.http.get("/health/ready", headers={"Meguri-After": str(sequence)})
        (warning,) = asked.json()["warnings"]
        await told.wire.apply(spec(told.model, "${NOTIFY_THERE}"), 3)

        async def quiet() -> bool:
            return await told.warnings() == ""

        await until(quiet)

    assert warning == (
        f"${{NOTIFY_NOWHERE}} cannot be told of episodes of {told.model}: "
        "the variable NOTIFY_NOWHERE is not set where monitoring runs"
    )


async def test_of_several_replicas_one_tells(broker, tmp_path, soon):
    port, hook = free_port(), free_port()
    async with telling(broker, tmp_path, mail_url(port), f"json://127.0.0.1:{hook}/x", replicas=2) as told:
        with mail_server(port) as mailbox, web_server(hook) as posted:
            for number in range(5):
                await told.begins(f"e-{number}")
            for number in range(5):
                await told.ends(f"e-{number}")
            await told.said(NoticeSent, 20)
            await told.idle()

    assert ["over" in subject for subject in mailbox.subjects].count(True) == 5
    assert (len(mailbox.mails), len(posted)) == (10, 10)


async def test_who_was_told_before_a_restart_is_told_only_of_the_end_after_it(broker, tmp_path):
    port = free_port()
    with mail_server(port) as mailbox:
        async with telling(broker, tmp_path, mail_url(port)) as told:
            model = told.model
            await told.begins("e-1")
            await told.said(NoticeSent)
        async with telling(broker, tmp_path) as again:
            told = replace(again, model=model)
            await told.ends("e-1")
            await told.said(NoticeSent, 2)
            await told.idle()

    assert ["over" in subject for subject in mailbox.subjects] == [False, True]


async def test_a_hook_that_answers_500_is_tried_again_and_those_that_work_hear_once(broker, tmp_path, soon):
    hook, broken, refuses = free_port(), free_port(), [True]
    urls = (f"json://127.0.0.1:{hook}/x", f"json://127.0.0.1:{broken}/x")
    async with telling(broker, tmp_path, *urls, replicas=2) as told:
        with web_server(hook) as posted, web_server(broken, lambda: refuses[0]) as late:
            await told.begins("e-1")
            await told.ends("e-1")

            async def tries() -> bool:
                consumer = await told.wire.js.consumer_info("MEGURI", MONITORING_NOTICES.name)
                return consumer.num_redelivered is not None and consumer.delivered.consumer_seq > 6

            await until(tries)
            refuses[0] = False
            await told.said(NoticeSent, 4)
            await told.idle()

    assert ["over" in one["title"] for one in posted] == [False, True]
    assert ["over" in one["title"] for one in late] == [False, True]


async def test_who_was_not_told_stands_with_the_episode(broker, tmp_path):
    hook = free_port()
    async with telling(broker, tmp_path, "${NOTIFY_NOWHERE}", f"json://127.0.0.1:{hook}/x") as told:
        with web_server(hook):
            await told.begins("e-1")
            await told.said(NoticeSent)
            await told.said(NoticeFailed)
            await told.idle()

        async def shown() -> list[dict[str, Any]]:
            (one,) = (await told.http.get("/episodes", params={"model": told.model})).json()
            return one["not_told"]

        (failed,) = await until(shown)
        page = (await told.http.get("/episodes/e-1/report")).text

    why = "the variable NOTIFY_NOWHERE is not set where monitoring runs"
    assert failed == {"moment": "opened", "target": "${NOTIFY_NOWHERE}", "error": why}
    assert f"${{NOTIFY_NOWHERE}} could not be told that it began: {why}." in page


async def test_a_message_that_comes_again_tells_nobody_again(broker, tmp_path):
    async with telling(broker, tmp_path, mail_url(port := free_port())) as told:
        with mail_server(port) as mailbox:
            await told.begins("e-1")
            await told.said(NoticeSent)
            await told.idle()
            # As if the broker had lost what it knew of this consumer.
            config = (await told.wire.js.consumer_info("MEGURI", MONITORING_NOTICES.name)).config
            await told.wire.js.delete_consumer("MEGURI", MONITORING_NOTICES.name)
            await told.wire.js.add_consumer("MEGURI", config)
            await told.ends("e-1")
            await told.said(NoticeSent, 2)
            await told.idle()

    assert ["over" in subject for subject in mailbox.subjects] == [False, True]


async def test_what_was_delivered_and_could_not_be_said_is_said_later_and_not_delivered_again(
    broker, tmp_path, soon, monkeypatch
):
    async with telling(broker, tmp_path, mail_url(port := free_port())) as told:
        say, fails = notifying.Notifier._say, asyncio.Event()

        async def once_not(self: Any, *given: Any) -> None:
            if not fails.is_set():
                fails.set()
                raise sending.NotDelivered("the log does not answer")
            await say(self, *given)

        monkeypatch.setattr(notifying.Notifier, "_say", once_not)
        with mail_server(port) as mailbox:
            await told.begins("e-1")
            await told.said(NoticeSent)
            await told.idle()

    assert fails.is_set()
    assert len(mailbox.mails) == 1


async def test_nobody_is_told_of_what_was_before_anybody_was_to_be_told(broker, tmp_path):
    async with telling(broker, tmp_path) as told:
        await told.begins("e-1")
        await told.idle()
        await told.wire.apply(spec(told.model, mail_url(port := free_port())), 2)
        with mail_server(port) as mailbox:
            config = (await told.wire.js.consumer_info("MEGURI", MONITORING_NOTICES.name)).config
            await told.wire.js.delete_consumer("MEGURI", MONITORING_NOTICES.name)
            await told.wire.js.add_consumer("MEGURI", config)
            await told.begins("e-2")
            await told.said(NoticeSent)
            await told.idle()

    assert len(mailbox.mails) == 1


async def test_a_server_that_refuses_is_tried_again(broker, tmp_path, soon):
    mailbox = Mailbox()
    mailbox.refuses = True
    async with telling(broker, tmp_path, mail_url(port := free_port())) as told:
        with mail_server(port, mailbox):
            await told.begins("e-1")

            async def warned() -> bool:
                return "could not be told yet" in await told.warnings()

            await until(warned)
            mailbox.refuses = False
            await told.said(NoticeSent)

    assert len(mailbox.mails) == 1


async def test_who_is_killed_between_two_targets_leaves_the_second_to_another_replica(broker, tmp_path):
    mail, hook, model = free_port(), free_port(), name("m")
    database_url = f"sqlite:///{tmp_path}/monitoring.db"
    first, second = (Replica(broker, tmp_path, database_url) for _ in range(2))
    async with wire(broker) as beside:
        await beside.apply(spec(model, f"json://127.0.0.1:{hook}/x", mail_url(mail)))
        with web_server(hook) as posted:
            with socket.create_server(("127.0.0.1", mail)), first.living():
                await until(first.ready)
                told = Told(beside, httpx.AsyncClient(), model)
                await told.begins("e-1")
                # The mail server takes the connection and says nothing.
                await told.said(NoticeSent)
            with mail_server(mail) as mailbox, second.living():
                sent = await until(lambda: two_said(told), within=MONITORING_NOTICES.ack_wait + 60)
                await told.idle()

    assert (len(posted), len(mailbox.mails)) == (1, 1)
    assert [one.target for one in sent] == [f"json://127.0.0.1:{hook}", f"mailto://127.0.0.1:{mail}"]


async def two_said(told: Told) -> list[NoticeSent] | None:
    found = await told.wire.said(NoticeSent, told.model)
    return found if len(found) == 2 else None


def test_how_long_a_message_was_tried_follows_from_its_deliveries():
    assert [notifying.waited(deliveries) for deliveries in (1, 2, 3, 4, 5, 6)] == [0, 1, 6, 21, 81, 141]
