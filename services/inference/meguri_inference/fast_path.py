"""Predictions for any ASGI server: what `connection` does not take off its parser, or has no parser for."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from meguri_contracts.errors import MeguriError
from meguri_inference.answering import Answering, Head, Reply
from meguri_inference.compression import BodyTooLarge, inflate
from meguri_inference.heads import WrongHeader, head_of, headers_of

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


class _ClientGone(Exception):
    """There is nobody left to answer."""


class FastPath:
    """Answers `POST /v2/models/{name}[/versions/{version}]/infer`; everything else goes to `inner`."""

    def __init__(self, inner: ASGIApp, answering: Answering) -> None:
        self._inner = inner
        self._answering = answering

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        try:
            is_post = scope["type"] == "http" and scope["method"] == "POST"
            head = head_of(scope["path"], scope["headers"]) if is_post else None
            reply = await self._answering.answer(head, await self._body(head, receive)) if head else None
        except MeguriError as error:
            reply = self._answering.refusal(error)
        except _ClientGone:
            return
        if reply is None:
            await self._inner(scope, receive, send)
        else:
            await _send(reply, send)

    async def _body(self, head: Head, receive: Receive) -> bytes:
        limit = self._answering.limits.max_body_bytes
        if head.length is not None and head.length > limit:
            raise BodyTooLarge(limit)
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _ClientGone
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > limit:
                raise BodyTooLarge(limit)
            more = message.get("more_body", False)
        if head.length is not None and head.length != size:
            raise WrongHeader("content-length", f"{head.length} bytes were announced, {size} came")
        body = b"".join(parts)
        return await asyncio.to_thread(inflate, body, head.encoding, limit) if head.encoding else body


async def _send(reply: Reply, send: Send) -> None:
    headers = [*headers_of(reply), (b"content-length", b"%d" % len(reply.body))]
    if reply.status == 413:
        headers.append((b"connection", b"close"))  # or the server would read the rest of what is too large
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})
