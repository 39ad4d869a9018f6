"""The lean way of a prediction: an ASGI callable before the service that answers `infer` and passes on the rest."""

import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson

from meguri_contracts.errors import Invalid, NotFound, PermanentError, TooLarge
from meguri_inference.models import Models
from meguri_inference.predicting import LoadedModel
from meguri_inference.prediction_log import PredictionIds, PredictionLog
from meguri_inference.protocol import MAX_PRODUCER, UNKNOWN_PRODUCER

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

Finish = Callable[[int, dict[str, str | int]], None]
"""Ends a span: HTTP status, and its attributes by name."""
Trace = Callable[[Headers], tuple[str, Finish | None]]
"""Takes the request's headers; returns the trace id in hex, and what ends the span if the request is sampled."""
Observe = Callable[[str, int, int, float, int], None]
"""Counts an answer: model, version, rows, seconds, HTTP status. An unknown model is "" with version 0."""

CLIENT_GONE = 499
"""Status under which a request is counted whose client left before it was read."""
_BEFORE, _AFTER = "/v2/models/", "/infer"
_STATUS: tuple[tuple[type[PermanentError], int], ...] = ((NotFound, 404), (TooLarge, 413))
"""What is not 400. V2 knows no 422."""


class BodyTooLarge(TooLarge):
    def __init__(self, limit: int) -> None:
        super().__init__(f"the body is larger than the {limit} bytes that are accepted; send fewer rows in a request")


class WrongHeader(Invalid):
    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"header {name!r}: {reason}")


class _ClientGone(Exception):
    """There is nobody left to answer."""


class FastPath:
    """Answers `POST /v2/models/{name}[/versions/{version}]/infer`; everything else goes to `inner`."""

    def __init__(
        self,
        inner: ASGIApp,
        models: Models,
        log: PredictionLog,
        *,
        trace: Trace,
        observe: Observe,
        max_body_bytes: int,
        max_rows: int,
    ) -> None:
        self._inner = inner
        self._models = models
        self._log = log
        self._trace = trace
        self._observe = observe
        self._max_body_bytes = max_body_bytes
        self._max_rows = max_rows
        self._ids = PredictionIds()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            path: str = scope["path"]
            if path.startswith(_BEFORE) and path.endswith(_AFTER):
                name = path[len(_BEFORE) : -len(_AFTER)]
                if "/" not in name:
                    return await self._infer(name, None, scope["headers"], receive, send)
                match name.split("/"):
                    case [name, "versions", version]:
                        return await self._infer(name, version, scope["headers"], receive, send)
        return await self._inner(scope, receive, send)

    async def _infer(self, name: str, version: str | None, headers: Headers, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        trace_id, finish = self._trace(headers)
        model: LoadedModel | None = None
        rows, prediction_id, status, refusal = 0, "", 500, ""
        try:
            model = self._models.get(name, version)
            announced, producer = _read_headers(headers)
            body = await self._read_body(announced, receive)
            request = model.codec.decode(body, max_rows=self._max_rows)
            rows = len(request.x)
            answer = await model.predict(request.x)
            now = time.time_ns() // 1000
            prediction_id = self._ids.next(now)
            self._log.add(
                model,
                prediction_id=prediction_id,
                microseconds=now,
                producer=request.producer or producer or UNKNOWN_PRODUCER,
                trace_id=trace_id,
                answer=answer,
            )
            body = model.codec.encode(
                answer,
                request.wanted,
                prediction_id=prediction_id,
                trace_id=trace_id,
                client_id=request.id,
            )
            status = 200
            await _respond(send, status, body)
        except PermanentError as error:
            status, refusal = _status(error), str(error)
            await _respond(send, status, orjson.dumps({"error": refusal}))
        except _ClientGone:
            status = CLIENT_GONE
        finally:
            known, served = (model.name, model.version) if model else ("", 0)
            self._observe(known, served, rows, time.perf_counter() - started, status)
            if finish is not None:
                attributes: dict[str, str | int] = {"model": known or name, "version": served, "rows": rows}
                attributes |= {"prediction_id": prediction_id} if prediction_id else {"error": refusal}
                finish(status, attributes)

    async def _read_body(self, announced: int | None, receive: Receive) -> bytes:
        if announced is not None and announced > self._max_body_bytes:
            raise BodyTooLarge(self._max_body_bytes)
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _ClientGone
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._max_body_bytes:
                raise BodyTooLarge(self._max_body_bytes)
            more = message.get("more_body", False)
        if announced is not None and announced != size:
            raise WrongHeader("content-length", f"{announced} bytes were announced, {size} came")
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _read_headers(headers: Headers) -> tuple[int | None, str]:
    """Return the announced length of the body, if any, and the producer, empty if not named."""
    announced, producer = None, ""
    for name, value in headers:
        if name == b"content-length":
            if not value.isdigit():
                raise WrongHeader("content-length", "a number of bytes is expected")
            announced = int(value)
        elif name == b"meguri-producer":
            producer = value.decode(errors="replace")
            if len(producer) > MAX_PRODUCER:
                raise WrongHeader("meguri-producer", f"{len(producer)} characters, at most {MAX_PRODUCER} are accepted")
    return announced, producer


def _status(error: PermanentError) -> int:
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 400)


async def _respond(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if status == 413:
        headers.append((b"connection", b"close"))  # or the server would read the rest of what is too large
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
