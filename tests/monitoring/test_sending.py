import socket

import pytest

from meguri_monitoring.episodes.telling import Words
from meguri_monitoring.notices.sending import NotDelivered, Unusable, deliver, expanded, targets
from tests.conftest import free_port
from tests.monitoring.sinks import mail_server, web_server

WORDS = Words("変化 <b>&", "<script>alert(1)</script> 「値」\nsecond line")
SECRETS = ("anna", "hunter2", "T1JJ3T3L2", "TIiajkdnlazkcOXrIdevi7FQ", "hook-key", "ops@example.com", "general")


def test_a_target_is_called_by_what_is_no_secret():
    urls = (
        "mailto://anna:hunter2@smtp.example.com:2525/ops@example.com?mode=insecure",
        "slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ/#general",
        "https://hooks.slack.com/services/T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ",
        "jsons://anna:hunter2@example.com/hook-key?token=hunter2",
        "${NOTIFY_OPS}",
        "mailto://${NOTIFY_USER}:${NOTIFY_PASSWORD}@smtp.example.com/ops@example.com",
        "anna:hunter2@nonsense",
    )
    names = [one.name for one in targets(urls)]

    assert names == [
        "mailto://smtp.example.com:2525",
        "slack://",
        "slack:// #2",
        "jsons://example.com",
        "${NOTIFY_OPS}",
        "mailto://smtp.example.com:25",
        "notify.urls[6]",
    ]
    assert not any(secret in name for name in names for secret in SECRETS)


def test_targets_that_would_be_called_alike_are_told_apart():
    urls = ("json://host/one", "json://host/two", "json://other", "json://host/three")

    assert [one.name for one in targets(urls)] == ["json://host", "json://host #2", "json://other", "json://host #3"]


def test_variables_are_put_in_their_places():
    environment = {"NOTIFY_URL": "json://host/a?b=c", "NOTIFY_PASSWORD": "p@ss/wört"}

    assert expanded("${NOTIFY_URL}", environment) == "json://host/a?b=c"
    assert expanded("mailto://u:${NOTIFY_PASSWORD}@host", environment) == "mailto://u:p%40ss%2Fw%C3%B6rt@host"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("mailto://u:${NOTIFY_NOWHERE}@host", "NOTIFY_NOWHERE is not set"),
        ("json://evil/${MEGURI_DATABASE_URL}", "begin with NOTIFY_"),
        ("json://evil/${}", "begin with NOTIFY_"),
    ],
)
def test_a_variable_that_is_missing_or_none_of_the_spec_s_business_is_said(url, why):
    with pytest.raises(Unusable, match=why):
        expanded(url, {"MEGURI_DATABASE_URL": "postgresql://secret"})


async def test_a_mail_has_the_text_as_it_is():
    with mail_server(port := free_port()) as mailbox:
        await deliver(f"mailto://127.0.0.1:{port}/ops@example.com?from=m@example.com&mode=insecure", WORDS)

    (mail,) = mailbox.mails
    assert (mail["To"], mail["Subject"]) == ("ops@example.com", WORDS.subject)
    assert mailbox.texts[0].replace("\r\n", "\n").strip() == WORDS.body


async def test_a_mail_in_html_has_names_from_outside_as_text():
    with mail_server(port := free_port()) as mailbox:
        await deliver(f"mailto://127.0.0.1:{port}/ops@example.com?from=m@example.com&mode=insecure&format=html", WORDS)

    html = mailbox.mails[0].get_body(("html",)).get_content()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "「値」" in html


async def test_a_webhook_gets_subject_and_text():
    with web_server(port := free_port()) as posted:
        await deliver(f"json://127.0.0.1:{port}/hook", WORDS)

    assert (posted[0]["title"], posted[0]["message"]) == (WORDS.subject, WORDS.body)


async def test_why_something_was_not_delivered_has_no_secret_in_it(capfd):
    url = f"json://anna:hunter2@127.0.0.1:{free_port()}/hook-key?token=hunter2"

    with pytest.raises(NotDelivered, match="onnection error") as raised:
        await deliver(url, WORDS)

    said = str(raised.value) + "".join(capfd.readouterr())
    assert not any(secret in said for secret in SECRETS)


async def test_a_server_that_says_nothing_is_waited_for_only_so_long():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"json://127.0.0.1:{silent.getsockname()[1]}/hook"

        with pytest.raises(NotDelivered, match="did not finish"):
            await deliver(url, WORDS, timeout=0.2)


@pytest.mark.parametrize("url", ["nonsense", "telepathy://anna:hunter2@x", "slack://hunter2", ""])
async def test_a_url_that_nothing_can_be_sent_to_is_said_without_its_secrets(url, capfd):
    with pytest.raises(Unusable, match="no URL that Apprise can send to") as raised:
        await deliver(url, WORDS)

    assert "hunter2" not in str(raised.value) + "".join(capfd.readouterr())
