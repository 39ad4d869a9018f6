"""Compressed bodies of requests: inflated up to a limit, before anything in them is looked at."""

import zlib

from meguri_contracts.errors import Invalid, TooLarge

_WINDOW = {"gzip": 31, "x-gzip": 31, "deflate": 15}
"""zlib's window bits: 31 is gzip's format, 15 zlib's own."""


class BodyTooLarge(TooLarge):
    def __init__(self, limit: int) -> None:
        super().__init__(f"the body is larger than the {limit} bytes that are accepted; send fewer rows in a request")


class BadEncoding(Invalid):
    """The body is not compressed as its header says."""


def inflate(body: bytes, encoding: str, limit: int) -> bytes:
    """Return `body` as it was before it was compressed. Raises BadEncoding, or BodyTooLarge above `limit` bytes.

    A body takes as long as it is large: call it in a thread.
    """
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return body
    if name not in _WINDOW:
        raise BadEncoding(
            f"header 'content-encoding' is {encoding[:50]!r}; {', '.join(_WINDOW)} are accepted, one at a time"
        )
    stream = zlib.decompressobj(_WINDOW[name])
    try:
        inflated = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise BadEncoding(f"the body is not {name}: {error}") from None
    if len(inflated) > limit:
        raise BodyTooLarge(limit)
    if not stream.eof or stream.unused_data:
        raise BadEncoding(f"the body is not one whole {name} stream")
    return inflated
