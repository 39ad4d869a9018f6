"""Where messages to people end up in tests: real servers of mail and of the web, on loopback, and a spec that names them."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from meguri_contracts.spec import ModelSpec


def spec(model: str, *urls: str, language: str = "en") -> ModelSpec:
    """A spec whose episodes are told at these."""
    return ModelSpec.model_validate(
        {
            "model": model,
            "task": "classification",
            "dataset": {"name": model, "columns": {"x": {"type": "number"}, "label": {"type": "integer"}}},
            "target": "label",
            "estimator": {"name": "LogisticRegression"},
            "gate": "accuracy > 0",
            "notify": {"urls": urls, "language": language},
        }
    )


class Mailbox:
    """Keeps the mails that an SMTP server took."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.refuses = False
        """Whether the server is there and takes nothing."""

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802 - its name
        if self.refuses:
            return "451 try again later"
        content = cast("bytes", envelope.content)
        self.mails.append(cast("EmailMessage", message_from_bytes(content, policy=policy.default)))
        return "250 taken"

    @property
    def subjects(self) -> list[str]:
        return [str(mail["Subject"]) for mail in self.mails]

    @property
    def texts(self) -> list[str]:
        """The bodies as plain text."""
        return [_text(mail) for mail in self.mails]


@contextmanager
def mail_server(port: int, mailbox: Mailbox | None = None) -> Iterator[Mailbox]:
    """An SMTP server."""
    mailbox = mailbox or Mailbox()
    controller = Controller(mailbox, hostname="127.0.0.1", port=port)
    controller.start()
    try:
        yield mailbox
    finally:
        controller.stop()


@contextmanager
def web_server(port: int, refuses: Callable[[], bool] = lambda: False) -> Iterator[list[Any]]:
    """A web server that takes JSON, or answers 500 while it `refuses`; yields what it took."""
    posted: list[Any] = []

    class Takes(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            is_refused = refuses()
            if not is_refused:
                posted.append(body)
            self.send_response(500 if is_refused else 200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Takes)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield posted
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _text(mail: EmailMessage) -> str:
    body = mail.get_body(("plain", "html"))
    assert body is not None
    return str(body.get_content())
