"""Predictions over real sockets, with uvicorn as the service runs it."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meguri_contracts.errors import PermanentError
from meguri_contracts.spec import PredictionLog as Logging
from meguri_inference import connection
from meguri_inference.connection import MAX_HEAD_BYTES, MAX_HEADS, MAX_OWED, MAX_UNREAD_BYTES
from tests.conftest import PATIENCE, until
from tests.inference.replicas import MAX_BODY, Replica, as_version, noted

INFER = "/v2/models/iris/infer"


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def labels(self) -> list[int]:
        found: list[int] = self.json["outputs"][0]["data"]
        return found

    @property
    def gist(self) -> Any:
        """What does not differ between two answers to the same request."""
        if self.status == 418:
            return self.status, self.body
        answer = self.json
        answer.pop("id", None)
        answer.pop("parameters", None)
        for output in answer.get("outputs", []):
            # How many are computed together shows in the last digits.
            output["data"] = [round(value, 9) for value in output["data"]]
        return self.status, self.headers.get("connection"), answer


@dataclass
class Client:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, *requests: bytes) -> None:
        self.writer.write(b"".join(requests))

    async def answer(self) -> Answer:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status, *lines = head[:-4].split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        assert len(headers) == len(lines), head
        body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return Answer(int(status.split()[1]), headers, body)

    async def answers(self, count: int) -> list[Answer]:
        return [await self.answer() for _ in range(count)]

    async def ask(self, *requests: bytes) -> Answer:
        self.send(*requests)
        return await self.answer()

    async def closed(self) -> bool:
        """Wait for the other side to close; whether it said nothing more."""
        return await asyncio.wait_for(self.reader.read(), PATIENCE) == b""


@dataclass
class Server:
    port: int
    uvicorn: uvicorn.Server

    @property
    def connections(self) -> list[Any]:
        return list(self.uvicorn.server_state.connections)

    @asynccontextmanager
    async def client(self, *, limit: int = 2**20) -> AsyncIterator[Client]:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port, limit=limit))
        try:
            yield client
        finally:
            client.writer.close()


@asynccontextmanager
async def served(replica: Replica, **config: Any) -> AsyncIterator[Server]:
    """Serve as the service does, on a free port of the loopback."""
    config = {"http": replica.protocol, "lifespan": "off", "log_config": None, "access_log": False} | config
    server = uvicorn.Server(uvicorn.Config(replica.app, timeout_graceful_shutdown=5, **config))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        # The kernel queues who connects before uvicorn accepts, so there is nothing to wait for.
        running = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            yield Server(listening.getsockname()[1], server)
        finally:
            server.should_exit = True
            await running


@pytest.fixture
async def server(replica, iris) -> AsyncIterator[Server]:
    await replica.follow(iris)
    async with served(replica) as server:
        yield server


def post(body: Any, path: str = INFER, *headers: str, length: int | str | None = None) -> bytes:
    """A request as bytes; `length` is what it says of its body."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: a", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def get(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: a", *headers, "", ""]).encode()


# --- known heads ------------------------------------------------------------------------------------------------------


async def test_a_request_is_answered_alike_whether_its_head_is_known_or_not(replica, server, iris):
    requests = [
        post(iris.body(iris.x[:2])),
        post(iris.body(iris.x[:1]), "/v2/models/iris/versions/3/infer", "Meguri-Entity: a", "Meguri-Producer: b"),
        post(b"nonsense"),
        post(iris.body(iris.x[:1]), "/v2/models/nobody/infer"),
        post(iris.body(iris.x[:1]), "/v2/models/iris/versions/9/infer"),
    ]
    async with server.client() as client:
        unknown = [await client.ask(request) for request in requests]
        assert len(replica.protocol.heads) == 5
        known = [await client.ask(request) for request in requests]

    assert [answer.status for answer in known] == [200, 200, 400, 404, 404]
    assert [answer.gist for answer in known] == [answer.gist for answer in unknown]
    assert [sorted(answer.headers) for answer in known] == [sorted(answer.headers) for answer in unknown]
    logged = await replica.predictions()
    assert logged["producer"].to_pylist() == ["unknown", "unknown", "b"] * 2
    assert logged["_entity"].to_pylist() == [None, None, "a"] * 2


async def test_a_known_head_answers_for_its_own_model_version_length_and_producer_only(replica, server, iris, forest):
    await replica.follow(forest)
    heads = [
        (path, *producer)
        for path in (INFER, "/v2/models/forest/infer", "/v2/models/iris/versions/3/infer")
        for producer in ((), ("Meguri-Producer: a",), ("Meguri-Producer: b",), ("meguri-producer:a",))
    ]
    async with server.client() as client:
        for _ in range(2):
            for path, *producer in heads:
                for rows in (iris.x[:1], iris.x[:3]):
                    answer = await client.ask(post(forest.body(rows), path, *producer))
                    assert answer.json["model_name"] == path.split("/")[3]
                    assert len(answer.labels) == len(rows)

    await replica.log.close()
    producers = [producer for table in replica.outlet.tables for producer in table["producer"].to_pylist()]
    assert {name: producers.count(name) for name in set(producers)} == {"unknown": 24, "a": 48, "b": 24}


async def test_not_more_heads_are_remembered_than_the_bound_and_no_long_ones(replica, server, iris):
    body = iris.body(iris.x[:1])
    async with server.client() as client:
        for at in range(MAX_HEADS + 10):
            assert (await client.ask(post(body, INFER, f"X: {at}"))).status == 200
        assert len(replica.protocol.heads) == 10
        assert (await client.ask(post(body, INFER, "X: " + "x" * MAX_HEAD_BYTES))).status == 200
        assert len(replica.protocol.heads) == 10


async def test_empty_lines_before_a_request_are_not_remembered_as_its_head(replica, server, iris):
    async with server.client() as client:
        for empty in (b"\r\n", b"\r\n\r\n", b"\r\r\n\r\n", b"\n\r\n\r\n"):
            assert (await client.ask(empty + post(iris.body(iris.x[:1])))).labels == [0]

    assert all(head.startswith(b"POST ") for head in replica.protocol.heads)


async def test_requests_of_a_trace_and_those_without_a_length_are_not_remembered(replica, server, iris):
    trace = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01"
    async with server.client() as client:
        first = await client.ask(post(iris.body(iris.x[:1]), INFER, trace))
        await client.ask(chunked(json.dumps(iris.body(iris.x[:1])).encode()))

    assert first.json["parameters"]["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
    assert replica.protocol.heads == {}


# --- order and pieces -------------------------------------------------------------------------------------------------


async def test_pipelined_requests_on_one_connection_are_answered_in_their_order(server, iris):
    async with server.client() as client:
        client.send(
            post(iris.body(iris.x[:70])),
            post(iris.body(iris.x[:9]), "/v2/models/nobody/infer"),
            post(iris.body(iris.x[[50]])),
            post(iris.body(np.repeat(iris.x, 2, axis=0))),
            post(iris.body(iris.x[[140, 0]])),
        )
        answers = await client.answers(5)

    assert [answer.status for answer in answers] == [200, 404, 200, 200, 200]
    labels = [answer.labels for answer in answers if answer.status == 200]
    rows = (range(70), [50], np.repeat(range(150), 2), [140, 0])
    assert labels == [iris.estimator.predict(iris.x[which]).tolist() for which in rows]


async def test_predictions_between_other_requests_are_answered_in_their_turn(server, iris):
    async with server.client() as client:
        for _ in range(2):
            for at in range(60):
                client.send(get(f"/{at}") if at % 3 == 0 else post(iris.body(iris.x[[at]])))
            answers = await client.answers(60)
            for at, answer in enumerate(answers):
                if at % 3 == 0:
                    assert answer.body == b"/%d 0" % at
                else:
                    assert answer.labels == iris.estimator.predict(iris.x[[at]]).tolist()


async def test_everybody_gets_the_answer_to_his_own_rows_on_many_connections(server, iris):
    async def talk(seed: int) -> None:
        rng = np.random.default_rng(seed)
        async with server.client() as client:
            for _ in range(10):
                questions = [iris.x[rng.integers(0, 150, rng.integers(1, 4))] for _ in range(4)]
                client.send(*(post(iris.body(rows)) for rows in questions))
                for rows in questions:
                    assert (await client.answer()).labels == iris.estimator.predict(rows).tolist()

    await asyncio.gather(*map(talk, range(30)))


async def sent_in_pieces(client: Client, protocol: Any, *pieces: bytes) -> None:
    """Send pieces so that each arrives by itself."""
    for piece in pieces:
        before = protocol.arrived
        client.send(piece)
        await until(lambda: protocol.arrived >= before + len(piece), "the piece")  # noqa: B023


@pytest.fixture
def counting(replica) -> Iterator[None]:
    """Have every connection count the bytes that arrived."""

    class Counting(replica.protocol):
        arrived = 0

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.arrived += len(data)

    replica.protocol = Counting


async def protocol_with(server: Server, client: Client) -> Any:
    """The server's side of a client's connection."""
    mine = client.writer.get_extra_info("sockname")
    return await until(lambda: next((p for p in server.connections if p.client == mine), None), "the connection")


@pytest.mark.parametrize("known", [False, True], ids=["unknown head", "known head"])
async def test_a_request_may_be_cut_anywhere(counting, replica, iris, known):
    await replica.follow(iris)
    request = post(iris.body(iris.x[[60]]))
    async with served(replica) as server, server.client() as client:
        protocol = await protocol_with(server, client)
        for cut in range(1, len(request)):
            if known:
                assert (await client.ask(request)).labels == [1]
            else:
                replica.protocol.heads.clear()
            await sent_in_pieces(client, protocol, request[:cut], request[cut:])
            assert (await client.answer()).labels == [1]


async def test_two_requests_and_a_half_in_one_piece(counting, replica, iris):
    await replica.follow(iris)
    requests = [post(iris.body(iris.x[[at]])) for at in (0, 60, 120)]
    async with served(replica) as server, server.client() as client:
        protocol = await protocol_with(server, client)
        for _ in range(2):
            half = len(requests[2]) // 2
            await sent_in_pieces(client, protocol, b"".join(requests)[:-half], requests[2][-half:])
            assert [answer.labels for answer in await client.answers(3)] == [[0], [1], [2]]


# --- a parser compared with itself ------------------------------------------------------------------------------------


def chunked(body: bytes, *headers: str, path: str = INFER, size: int = 50) -> bytes:
    head = "\r\n".join([f"POST {path} HTTP/1.1", "Host: a", "Transfer-Encoding: chunked", *headers, "", ""]).encode()
    chunks = [body[at : at + size] for at in range(0, len(body), size)]
    return head + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


@st.composite
def conversations(draw: st.DrawFn) -> tuple[list[tuple[str, Any]], list[int]]:
    kinds = st.sampled_from(
        ["infer", "infer", "infer", "entity", "chunked", "nonsense", "unknown", "get", "other", "big"]
    )
    requests = draw(st.lists(st.tuples(kinds, st.integers(0, 149)), min_size=1, max_size=12))
    return requests, draw(st.lists(st.integers(0, 4000), max_size=8))


def written(iris: Any, kind: str, at: int) -> bytes:
    body = iris.body(iris.x[[at]])
    match kind:
        case "get":
            return get(f"/v2/{at}")
        case "entity":
            return post(body, INFER, f"Meguri-Entity: customer-{at % 3}")
        case "chunked":
            return chunked(json.dumps(body).encode())
        case "nonsense":
            return post(b"?" * at)
        case "unknown":
            return post(body, "/v2/models/nobody/infer")
        case "other":
            return post(body, f"/elsewhere/{at}")
        case "big":
            return post(iris.body(np.repeat(iris.x[[at]], 280, axis=0)))
    return post(body)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(conversation=conversations())
async def test_however_requests_are_cut_they_are_answered_as_one_by_one(counting, server, iris, conversation):
    said, cuts = conversation
    requests = [written(iris, kind, at) for kind, at in said]
    stream = b"".join(requests)
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    async with server.client() as client:
        one_by_one = [(await client.ask(request)).gist for request in requests]
    async with server.client() as client:
        protocol = await protocol_with(server, client)
        for start, end in pairwise(edges):
            client.send(stream[start:end])
            # A connection that waits for the application reads no further for a while.
            await until(lambda: protocol.arrived >= end or protocol.flow.read_paused, "the piece")  # noqa: B023
        together = [answer.gist for answer in await client.answers(len(requests))]

    assert together == one_by_one


# --- bodies and heads as clients send them ----------------------------------------------------------------------------


async def test_a_body_in_chunks_is_taken_and_the_connection_stays(server, iris):
    body = json.dumps(iris.body(iris.x[[60]])).encode()
    async with server.client() as client:
        for size in (1, 30, 10_000):
            assert (await client.ask(chunked(body, size=size))).labels == [1]
        assert (await client.ask(post(iris.body(iris.x[[0]])))).labels == [0]


async def test_who_waits_to_be_told_to_go_on_is_told(server, iris):
    body = json.dumps(iris.body(iris.x[[60]])).encode()
    async with server.client() as client:
        client.send(post(b"", INFER, "Expect: 100-continue", length=len(body)))
        assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        assert (await client.ask(body)).labels == [1]


@pytest.mark.parametrize(
    ("before", "after"),
    [("HTTP/1.1\r\n", "HTTP/1.0\r\n"), ("Host: a\r\n", "Host: a\r\nConnection: close\r\n")],
    ids=["HTTP/1.0", "Connection: close"],
)
async def test_a_client_that_does_not_stay_is_answered_and_the_connection_closed(server, iris, before, after):
    request = post(iris.body(iris.x[[60]])).replace(before.encode(), after.encode())
    for _ in range(2):
        async with server.client() as client:
            answer = await client.ask(request)
            assert answer.labels == [1]
            assert answer.headers["connection"] == "close"
            assert await client.closed()


async def test_a_head_with_bare_line_feeds_is_never_remembered(replica, server, iris):
    request = post(iris.body(iris.x[[60]]))
    head, _, body = request.partition(b"\r\n\r\n")
    for bare in (head.replace(b"\r\n", b"\n", 1) + b"\r\n\r\n" + body, head.replace(b"\r\n", b"\n") + b"\n\n" + body):
        async with server.client() as client:
            answer = await client.ask(bare)
            assert answer.status in (200, 400)
            assert answer.status == 200 or await client.closed()
    assert replica.protocol.heads == {}


@pytest.mark.parametrize(
    "lengths",
    [["-1"], ["x"], ["1e3"], ["5, 5"], ["5", "5"], ["5", "6"], [""], ["9" * 25], ["+5"], ["0x5"]],
    ids=repr,
)
async def test_a_length_that_is_none_is_a_400_and_the_connection_is_closed(replica, server, iris, lengths):
    lines = [f"POST {INFER} HTTP/1.1", "Host: a", *(f"Content-Length: {length}" for length in lengths)]
    for _ in range(2):
        async with server.client() as client:
            answer = await client.ask("\r\n".join([*lines, "", ""]).encode() + b"12345")
            assert answer.status in (400, 413)
            assert answer.json["error"]
            assert answer.headers["connection"] == "close"
            assert await client.closed()
    assert replica.protocol.heads == {}


async def test_a_length_may_have_spaces_around_it(server, iris):
    body = json.dumps(iris.body(iris.x[[60]])).encode()
    async with server.client() as client:
        for _ in range(2):
            assert (await client.ask(post(body, length=f"  {len(body)} "))).labels == [1]


async def test_a_length_beside_chunks_is_refused(replica, server, iris):
    body = json.dumps(iris.body(iris.x[:1])).encode()
    for extra in ("Content-Length: 5", f"Content-Length: {len(body)}"):
        async with server.client() as client:
            answer = await client.ask(chunked(body, extra))
            assert answer.status == 400
            assert await client.closed()
    assert replica.protocol.heads == {}


async def test_a_body_longer_than_announced_is_the_next_request_and_a_bad_one(server, iris):
    body = json.dumps(iris.body(iris.x[[60]])).encode()
    for known in (False, True):
        async with server.client() as client:
            if known:
                assert (await client.ask(post(body))).status == 200
            client.send(post(body), b"}}}}")
            first, second = await client.answers(2)
            assert (first.labels, second.status) == ([1], 400)
            assert "connection" not in first.headers
            assert second.headers["connection"] == "close"
            assert await client.closed()


async def test_a_body_shorter_than_announced_is_waited_for_and_hurts_nobody_when_it_never_comes(replica, server, iris):
    async with server.client() as client:
        client.send(post(iris.body(iris.x[[60]]), length=500))
        async with server.client() as other:
            assert (await other.ask(post(iris.body(iris.x[[60]])))).labels == [1]
    await until(lambda: not server.connections, "the connections gone")
    assert replica.answering._under_way == 0
    assert list(replica.tallies.statuses) == [("iris", 200)]


async def test_what_is_no_http_after_requests_that_are_owed_comes_after_their_answers(server, iris):
    async with server.client() as client:
        client.send(post(iris.body(iris.x[[60]])), post(iris.body(iris.x[[0]])), b"nonsense\r\n\r\n")
        first, second, third = await client.answers(3)

        assert (first.labels, second.labels, third.status) == ([1], [0], 400)
        assert ["connection" in answer.headers for answer in (first, second, third)] == [False, False, True]
        assert await client.closed()


async def test_what_is_no_http_after_a_request_of_the_application_closes_after_the_answers_before_it(server, iris):
    async with server.client() as client:
        client.send(post(iris.body(iris.x[[60]])), get("/1"), b"nonsense\r\n\r\n")

        assert (await client.answer()).labels == [1]
        assert await client.closed()


# --- too large --------------------------------------------------------------------------------------------------------


async def test_a_body_above_the_limit_is_refused_before_it_is_read_and_the_connection_closed(server, iris):
    async with server.client() as client:
        answer = await client.ask(post(b"", length=MAX_BODY + 1))

        assert (answer.status, answer.headers["connection"]) == (413, "close")
        assert str(MAX_BODY) in answer.json["error"]
        assert await client.closed()


async def test_a_body_that_grows_above_the_limit_unannounced_is_refused_and_let_go(server):
    head = chunked(b"").removesuffix(b"0\r\n\r\n")
    async with server.client() as client:
        protocol = await protocol_with(server, client)
        answer = await client.ask(head, *([b"1000\r\n" + b" " * 4096 + b"\r\n"] * (MAX_BODY // 4096 + 1)))

        assert (answer.status, answer.headers["connection"]) == (413, "close")
        assert protocol._body == []
        assert await client.closed()


async def test_answers_that_are_owed_go_out_before_the_refusal_of_a_large_body(server, iris):
    async with server.client() as client:
        client.send(post(iris.body(iris.x[[60]])), post(b"", length=MAX_BODY + 1), get("/never"))
        first, second = await client.answers(2)

        assert (first.labels, second.status) == ([1], 413)
        assert ["connection" in answer.headers for answer in (first, second)] == [False, True]
        assert await client.closed()


async def test_with_any_client_a_large_body_is_a_413(server):
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as client:
        response = await client.post(INFER, content=b" " * (MAX_BODY + 1))

    assert response.status_code == 413
    assert response.headers["connection"] == "close"


@pytest.mark.parametrize(
    "beginning",
    [
        f"POST {INFER} HTTP/1.1\r\nX: ".encode(),
        f"POST {INFER}?".encode(),
        b"GET /models HTTP/1.1\r\nX: ",
        chunked(b"{}").removesuffix(b"\r\n") + b"X: ",
    ],
    ids=["header", "path", "header of the control plane", "trailer"],
)
async def test_a_head_without_an_end_is_refused_and_let_go(server, beginning):
    async with server.client() as client:
        protocol = await protocol_with(server, client)
        answer = await client.ask(beginning, *([b"x" * 4096] * (MAX_UNREAD_BYTES // 4096 + 100)))

        assert answer.status == 413
        assert str(MAX_UNREAD_BYTES) in answer.json["error"]
        assert await client.closed()
        await until(lambda: protocol.parser is None, "the parser let go")


# --- life -------------------------------------------------------------------------------------------------------------


async def test_a_silent_connection_is_closed_and_one_that_is_owed_an_answer_is_not(replica, iris):
    await replica.follow(iris, Logging(durable=True))
    async with served(replica, timeout_keep_alive=0.2) as server, server.client() as silent, server.client() as busy:
        assert (await silent.ask(post(iris.body(iris.x[[60]])))).labels == [1]
        replica.outlet.open.clear()
        busy.send(post(iris.body(iris.x[[60]])))
        assert await silent.closed()
        await until(lambda: len(server.connections) == 1)

        (protocol,) = server.connections
        assert protocol._owed
        replica.outlet.open.set()
        assert (await busy.answer()).labels == [1]
        # It may ask again: its silence begins with the answer.
        assert (await busy.ask(post(iris.body(iris.x[[0]])))).labels == [0]
        assert await busy.closed()


async def test_a_connection_in_the_middle_of_a_request_is_not_closed_for_its_silence(replica, iris):
    await replica.follow(iris)
    request = post(iris.body(iris.x[[60]]))
    async with served(replica, timeout_keep_alive=0.05) as server, server.client() as other, server.client() as client:
        client.send(request, request, request[:-5])
        assert [answer.labels for answer in await client.answers(2)] == [[1], [1]]
        assert (await other.ask(request)).labels == [1]
        assert await other.closed()

        assert (await client.ask(request[-5:])).labels == [1]
        assert await client.closed()


@pytest.mark.parametrize(
    ("beginning", "status"),
    [
        (b"", None),
        (f"POST {INFER} HTTP/1.1\r\nHost: a\r\n".encode(), 400),
        (post(b"{", length=10_000), 400),
        (b"POST /models HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n{", None),
    ],
    ids=["nothing", "half a head", "half a body", "half a body of the control plane"],
)
async def test_a_request_that_does_not_come_on_is_not_waited_for_for_ever(
    replica, iris, monkeypatch, beginning, status
):
    monkeypatch.setattr(connection, "PATIENCE", 0.1)
    await replica.follow(iris)
    async with served(replica) as server, server.client() as client:
        client.send(beginning)

        if status:
            answer = await client.answer()
            assert (answer.status, "did not come" in answer.json["error"]) == (status, True)
        assert await client.closed()
        await until(lambda: not server.connections, "nobody connected")


async def test_who_waits_long_for_an_answer_or_sends_slowly_is_waited_for(replica, iris, monkeypatch):
    monkeypatch.setattr(connection, "PATIENCE", 0.1)
    await replica.follow(iris, Logging(durable=True))
    replica.outlet.open.clear()
    request = post(iris.body(iris.x[[60]]))
    async with served(replica) as server, server.client() as slow, server.client() as impatient:
        slow.send(request)
        impatient.send(request[:-1])
        assert (await impatient.answer()).status == 400
        replica.outlet.open.set()

        assert (await slow.answer()).labels == [1]


async def test_who_never_reads_his_answers_is_not_read_any_more(replica, iris):
    await replica.follow(iris)
    request = get("/1") + post(iris.body(iris.x)) * 20
    async with served(replica) as server, server.client() as client:
        protocol = await protocol_with(server, client)
        client.reader._transport.pause_reading()
        while not client.writer.transport.get_write_buffer_size():
            client.send(request)
            await asyncio.sleep(0)
        flow = protocol.flow
        await until(lambda: flow.write_paused and flow.read_paused and not protocol._owed, "the server holding back")

        assert protocol.transport.get_write_buffer_size() < 4 * 2**20
        async with server.client() as other:
            assert (await other.ask(post(iris.body(iris.x[[60]])))).labels == [1]
        client.reader._transport.resume_reading()
        assert (await client.answer()).status == 418
        assert (await client.answer()).labels == iris.estimator.predict(iris.x).tolist()


async def test_one_connection_is_not_owed_any_number_of_answers(replica, iris):
    await replica.follow(iris, Logging(durable=True))
    replica.outlet.open.clear()
    request = post(iris.body(iris.x[[60]]))
    async with served(replica) as server, server.client() as client:
        protocol = await protocol_with(server, client)
        for _ in range(20):
            client.send(request * MAX_OWED)
        await until(lambda: protocol.flow.read_paused, "the server holding back")

        assert MAX_OWED < len(protocol._owed) < 4 * MAX_OWED
        replica.outlet.open.set()
        answers = await client.answers(20 * MAX_OWED)
        assert {tuple(answer.labels) for answer in answers} == {(1,)}


@pytest.mark.parametrize("then", [[], [get("/1")]], ids=["", "after one more request"])
async def test_a_client_that_leaves_while_its_answer_is_owed_hurts_nobody(replica, iris, then):
    await replica.follow(iris, Logging(durable=True))
    replica.outlet.open.clear()
    async with served(replica) as server:
        async with server.client() as gone:
            gone.send(post(iris.body(iris.x[[60]])), *then)
            await until(lambda: replica.outlet.tries, "the prediction on its way")
        async with server.client() as stays:
            stays.send(post(iris.body(iris.x[[0]])))
            await until(lambda: replica.answering._under_way == 2, "both owed")
            replica.outlet.open.set()
            assert (await stays.answer()).labels == [0]
        await until(lambda: not server.connections, "both gone")
    assert replica.answering._under_way == 0


async def test_at_shutdown_answers_that_are_owed_are_sent_and_only_the_last_says_that_it_is(replica, iris):
    await replica.follow(iris, Logging(durable=True))
    replica.outlet.open.clear()
    request = post(iris.body(iris.x[[60]]))
    async with served(replica) as server, server.client() as client, server.client() as idle:
        client.send(request, request, request)
        await until(lambda: replica.outlet.tries, "the predictions on their way")
        server.uvicorn.should_exit = True
        assert await idle.closed()
        replica.outlet.open.set()
        answers = await client.answers(3)

        assert [answer.labels for answer in answers] == [[1], [1], [1]]
        assert [answer.headers.get("connection") for answer in answers] == [None, None, "close"]
        assert await client.closed()


async def test_at_shutdown_the_application_answers_what_came_after_a_prediction(replica, iris):
    await replica.follow(iris, Logging(durable=True))
    replica.outlet.open.clear()
    async with served(replica) as server, server.client() as client, server.client() as idle:
        client.send(post(iris.body(iris.x[[60]])), get("/1"))
        await until(lambda: replica.outlet.tries, "the prediction on its way")
        server.uvicorn.should_exit = True
        assert await idle.closed()
        replica.outlet.open.set()

        assert (await client.answer()).labels == [1]
        assert (await client.answer()).body == b"/1 0"
        assert await client.closed()


async def test_at_shutdown_a_request_whose_body_is_on_its_way_is_answered(replica, iris):
    await replica.follow(iris)
    request = post(iris.body(iris.x[[60]]))
    async with served(replica) as server, server.client() as client, server.client() as idle:
        protocol = await protocol_with(server, client)
        client.send(request[:-5])
        await until(lambda: protocol._head, "the head")
        server.uvicorn.should_exit = True
        assert await idle.closed()
        answer = await client.ask(request[-5:])

        assert (answer.labels, answer.headers["connection"]) == ([1], "close")
        assert await client.closed()


async def test_too_many_that_wait_are_told_to_try_again_and_are_counted(iris):
    replica = Replica(max_waiting=2)
    await replica.follow(iris)
    request = post(iris.body(iris.x[[60]]))
    async with served(replica) as server, server.client() as client:
        client.send(request, request, request)
        answers = await client.answers(3)

        assert [answer.status for answer in answers] == [200, 200, 503]
        assert answers[2].headers["retry-after"] == "1"
        assert "2 requests wait" in answers[2].json["error"]
        assert (await client.ask(request)).labels == [1]
    assert replica.tallies.statuses == {("iris", 200): 3, ("iris", 503): 1}


async def test_what_goes_wrong_in_the_engine_is_a_400_and_the_connection_stays(replica, server, iris):
    engine = noted(replica.models.get("iris").champion)
    engine.error = PermanentError("broken")
    async with server.client() as client:
        answer = await client.ask(post(iris.body(iris.x[[60]])))
        engine.error = None

        assert (answer.status, answer.headers["content-type"]) == (400, "application/json")
        assert "no answer to these values: broken" in answer.json["error"]
        assert (await client.ask(post(iris.body(iris.x[[60]])))).labels == [1]


async def test_a_plan_that_changes_between_two_requests_changes_the_answer_of_a_known_head(replica, server, iris):
    request = post(iris.body(iris.x[[60]]))
    async with server.client() as client:
        versions = [(await client.ask(request)).json["model_version"]]
        await replica.follow(as_version(iris, 4))
        versions.append((await client.ask(request)).json["model_version"])

    assert versions == ["3", "4"]


async def test_a_failure_of_ours_is_a_500_without_its_details(replica, server, iris, caplog, monkeypatch):
    monkeypatch.setattr(connection.Connection, "heads", {})
    seat = replica.models.get("iris").champion
    engine = noted(seat)
    compute = engine.run

    def in_columns(x):
        label, probabilities = compute(x)
        return [label, np.asfortranarray(np.repeat(probabilities, 2, axis=1))[:, ::2]]

    engine.run = in_columns
    async with server.client() as client:
        answer = await client.ask(post(iris.body(iris.x[[0, 60]])))
        engine.run = compute

        assert answer.status in (200, 500)
        assert answer.status == 200 or "the log of inference says why" in answer.json["error"]
        assert (await client.ask(post(iris.body(iris.x[[60]])))).labels == [1]
