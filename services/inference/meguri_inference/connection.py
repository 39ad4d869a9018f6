"""HTTP connections of inference: predictions are answered straight from the parser, all else goes to the application as usual.

A client that keeps its connection sends the same head again and again. A head that was parsed once, byte for byte the same, is
not parsed again: its meaning is looked up. Whatever is new, odd or in pieces goes through the parser.
"""

import asyncio
from collections import deque
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from meguri_contracts.errors import Invalid, MeguriError, TooLarge
from meguri_inference.answering import Answering, Ask, Head, Reply
from meguri_inference.compression import BodyTooLarge
from meguri_inference.heads import head_of, headers_of

MAX_HEAD_BYTES = 2048
"""Of a head that is remembered."""
MAX_HEADS = 1024
"""Heads that are remembered; when they are more, all are forgotten."""
MAX_UNREAD_BYTES = 64 * 1024
"""That may come, beside the first piece, without the end of a head or anything of a body: the parser keeps them."""
MAX_OWED = 1000
"""Requests of one connection that wait for their answers before no more of it is read."""
LINGER = 1.0
"""Seconds after its last answer in which a client may close the connection himself."""
PATIENCE = 60.0
"""Seconds in which something more of a request must come."""
_END = b"\r\n\r\n"


class HeadTooLarge(TooLarge):
    def __init__(self) -> None:
        super().__init__(f"the head of the request is larger than the {MAX_UNREAD_BYTES} bytes that are accepted")


class GivenUp(Invalid):
    def __init__(self, seconds: float) -> None:
        super().__init__(f"the rest of the request did not come within {seconds:g} s")


class Connection(HttpToolsProtocol):
    """One connection. Replies go out in the order of their requests."""

    answering: ClassVar[Answering]
    heads: ClassVar[dict[bytes, Head]] = {}

    _owed: deque[Ask]
    """Requests without their reply, in the order they came."""
    _head: Head | None = None
    """Of the request that is being read, if it is a prediction."""
    _raw: bytes | None = None
    """Its bytes as they came, if it came in one piece and may be remembered."""
    _body: list[bytes]
    _size = 0
    _between = True
    """Whether the next byte begins a request."""
    _last = False
    """Whether nothing more is read, and the connection closes after what is owed."""
    _held = False
    """Whether the application's answer waits for those that are owed."""
    _leaving = False
    """Whether the request whose body is being read is the last one."""
    _unread = 0
    """Bytes since the parser last told something."""
    _seen = 0.0
    """When nothing was owed any more, by the loop's clock."""
    _pieces = 0
    """That have come."""
    _common: ClassVar[tuple[object, bytes]] = (None, b"")

    def connection_made(self, transport) -> None:  # type: ignore[no-untyped-def]
        super().connection_made(transport)
        self._owed = deque()
        self._body = []
        self._patience = self.loop.call_later(PATIENCE, self._look, 0)

    def connection_lost(self, exc: Exception | None) -> None:
        self._patience.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._last:
            return
        self._pieces += 1
        if self._between:
            data = self._answer_known(data)
            if data:
                end = data.find(_END, 0, MAX_HEAD_BYTES)
                self._raw = data[: end + 4] if end > 0 else None
        if data:
            self._unread += len(data)
            super().data_received(data)
            if self._unread > MAX_UNREAD_BYTES:
                self._break_off(HeadTooLarge())
        if len(self._owed) > MAX_OWED:
            self.flow.pause_reading()

    def _answer_known(self, data: bytes) -> bytes:
        """Answer requests whose heads are known, as many as are whole; return what is left."""
        if self.cycle is not None and not self.cycle.response_complete:
            return data
        start = 0
        while (end := data.find(_END, start, start + MAX_HEAD_BYTES)) > 0:
            end += 4
            head = self.heads.get(data[start:end])
            if head is None or head.length is None or len(data) < end + head.length:
                break
            self.answering.ask(head, data[end : end + head.length], self)
            start = end + head.length
            if start == len(data):
                return b""
        return data[start:] if start else data

    # --- the parser's calls

    def on_message_begin(self) -> None:
        self._between = False
        self._unread = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if self._last:
            return
        self._unread = 0
        self._head = None
        raw, self._raw = self._raw, None
        if self._is_plain():
            try:
                self._head = head_of(self.url.partition(b"?")[0].decode("latin-1"), self.headers)
            except MeguriError as error:
                self._refuse(error)
                return
        if self._head is None or self._head.encoding:
            self._head = None
            if self._owed:
                # The application's answer must wait for those that are owed.
                self.cycle = _Owing()  # type: ignore[assignment]
                self._held = True
            super().on_headers_complete()
            return
        self._body, self._size = [], 0
        if (self._head.length or 0) > self.answering.limits.max_body_bytes:
            self._refuse(BodyTooLarge(self.answering.limits.max_body_bytes))
        elif raw is not None and self._may_be_remembered(raw):
            if len(self.heads) >= MAX_HEADS:
                self.heads.clear()
            self.heads[raw] = self._head

    def on_body(self, body: bytes) -> None:
        if self._last:
            return
        self._unread = 0
        if self._head is None:
            super().on_body(body)
            return
        self._body.append(body)
        self._size += len(body)
        if self._size > self.answering.limits.max_body_bytes:
            self._refuse(BodyTooLarge(self.answering.limits.max_body_bytes))

    def on_message_complete(self) -> None:
        self._between = True
        if self._last:
            return
        if self._head is None:
            super().on_message_complete()
            return
        head, self._head = self._head, None
        body, self._body = b"".join(self._body), []
        self._last = self._leaving
        self.answering.ask(head, body, self)

    def _is_plain(self) -> bool:
        """Whether this may be answered here: HTTP/1.1, a connection that stays, and no answer of the application before it."""
        return (
            self.parser.get_method() == b"POST"
            and self._is_its_turn()
            and not self.expect_100_continue
            and self.parser.get_http_version() == "1.1"
            and self.parser.should_keep_alive()
            and not self.parser.should_upgrade()
        )

    def _is_its_turn(self) -> bool:
        """Whether the application has answered everything that it was asked."""
        return self.cycle is None or self.cycle.response_complete

    def _may_be_remembered(self, raw: bytes) -> bool:
        head = self._head
        # Empty lines may come before a head, and a line that ends otherwise would end it elsewhere.
        strict = raw.startswith(b"POST ") and raw.count(b"\n") == raw.count(b"\r\n")
        return strict and head is not None and head.length is not None and head.context is None

    # --- answers

    def send_400_response(self, msg: str) -> None:
        self._break_off(Invalid(msg))

    def _break_off(self, error: MeguriError) -> None:
        """Read no further; say why if the answers before this one are ours, and can be sent first."""
        if self._is_its_turn():
            self._refuse(error)
        elif self._owed:
            self._last = True
        else:
            self.transport.close()

    def _refuse(self, error: MeguriError) -> None:
        """Answer a request whose rest is not read, and close the connection after it."""
        self._head, self._body = None, []
        self._last = True
        self.flow.pause_reading()
        ask = Ask(self.answering, Head(""), self)
        self.owe(ask)
        self.reply(ask, self.answering.refusal(error))

    def owe(self, ask: Ask) -> None:
        self._owed.append(ask)

    def reply(self, ask: Ask, reply: Reply) -> None:
        """Send a reply, in its turn."""
        owed = self._owed
        ask.kept = reply
        while owed and (kept := owed[0].kept) is not None:
            owed.popleft()
            self._write(kept, last=self._last and not owed)
        if not owed:
            self._nothing_owed()

    def _write(self, reply: Reply, *, last: bool) -> None:
        if self.transport.is_closing():
            return
        usual = reply.status == 200 and reply.header_length is None and not last
        begin = self._begin_of_answers() if usual else self._begin(reply, last=last)
        self.transport.write(begin + b"%d\r\n\r\n%b" % (len(reply.body), reply.body))
        self.server_state.total_requests += 1

    def _begin_of_answers(self) -> bytes:
        """Return the head of an answer in JSON, but for its length; it is another every second, because of the date."""
        common = self.server_state.default_headers
        if Connection._common[0] is not common:
            Connection._common = (common, self._begin(Reply(200, b""), last=False))
        return Connection._common[1]

    def _begin(self, reply: Reply, *, last: bool) -> bytes:
        headers = [*self.server_state.default_headers, *headers_of(reply)]
        if last:
            headers.append((b"connection", b"close"))
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        return STATUS_LINE[reply.status] + lines + b"content-length: "

    def _nothing_owed(self) -> None:
        self._seen = self.loop.time()
        if self._last:
            self._hang_up()
        elif self._held:
            self._held = False
            self.on_response_complete()
        elif self.timeout_keep_alive_task is None and self._between:
            self._wait(self.timeout_keep_alive)
        if self.flow.read_paused:
            self._read_on()

    def _hang_up(self) -> None:
        """Close the connection. What still comes is read for a while, or the kernel would take back what was answered last."""
        if not self.transport.is_closing():
            self.transport.write_eof()
            self.flow.resume_reading()
            self.loop.call_later(LINGER, self.transport.close)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.flow.write_paused:
            self.flow.pause_reading()

    def _read_on(self) -> None:
        """Read again, unless one of the reasons not to is left."""
        if not (self._last or self.flow.write_paused or self.pipeline or self.transport.is_closing()):
            self.flow.resume_reading()

    # --- life

    def _wait(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that has been silent. Looked at when the timer fires: setting it for each request costs more."""
        left = self._seen + self.timeout_keep_alive - self.loop.time()
        if self._owed or left > 0:
            self._wait(self.timeout_keep_alive if self._owed else left)
        else:
            super().timeout_keep_alive_handler()

    def _look(self, pieces: int) -> None:
        """Give a request up of which nothing more has come; `pieces` is what had come when this was looked at last."""
        if self._last or self.transport.is_closing():
            return
        if self._pieces == pieces and not self.flow.read_paused:
            if not pieces:
                self.transport.close()
                return
            if not self._between:
                self._break_off(GivenUp(PATIENCE))
                return
        self._patience = self.loop.call_later(PATIENCE, self._look, self._pieces)

    def shutdown(self) -> None:
        """Answer what was asked, and close."""
        if self._head is not None:
            self._leaving = True
        elif self._owed and not self._held:
            self._last = True
        else:
            super().shutdown()

    def pause_writing(self) -> None:
        """Read no more from who does not read his answers."""
        super().pause_writing()
        self.flow.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._read_on()


class _Owing:
    """Stands for answers that are owed where the application's answer would stand."""

    response_complete = disconnected = False
    keep_alive = True
    message_event = asyncio.Event()


def speaking(answering: Answering) -> type[Connection]:
    """Return the protocol of connections whose predictions `answering` answers."""
    return type("Speaking", (Connection,), {"answering": answering, "heads": {}})
