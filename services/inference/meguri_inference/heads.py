"""What the head of an HTTP request says of a prediction, and what the head of its answer must say."""

from collections.abc import Sequence
from urllib.parse import unquote

from meguri_contracts.errors import Invalid
from meguri_inference import binary
from meguri_inference.answering import Head, Reply
from meguri_inference.envelope import MAX_NAME

Headers = Sequence[tuple[bytes, bytes]]

RETRY_AFTER = b"1"
"""Seconds."""
_BEFORE, _AFTER = "/v2/models/", "/infer"


class WrongHeader(Invalid):
    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"header {name!r}: {reason}")


def head_of(path: str, headers: Headers) -> Head | None:
    """Return what is asked for by `POST /v2/models/{name}[/versions/{version}]/infer`, None if that is not the path.

    Names of headers are in lower case. Raises WrongHeader.
    """
    if not (path.startswith(_BEFORE) and path.endswith(_AFTER)):
        return None
    match unquote(path[len(_BEFORE) : -len(_AFTER)]).split("/"):
        case [model]:
            return head_for(model, headers)
        case [model, "versions", version]:
            return head_for(model, headers, version)
    return None


def headers_of(reply: Reply) -> list[tuple[bytes, bytes]]:
    """Return the headers of an answer, but for its length."""
    if reply.header_length is not None:
        length = b"%d" % reply.header_length
        return [(b"content-type", b"application/octet-stream"), (binary.HEADER_NAME, length)]
    json = (b"content-type", b"application/json")
    return [json, (b"retry-after", RETRY_AFTER)] if reply.status == 503 else [json]


def head_for(model: str, headers: Headers, version: str | None = None) -> Head:
    """Return what is asked of a model, by whatever way. Names of headers are in lower case. Raises WrongHeader or BadLength."""
    length: int | None = None
    header_length: int | None = None
    entity: str | None = None
    producer = encoding = ""
    in_trace = False
    for name, value in headers:
        match name:
            case b"content-length":
                length = _number(name, value)
            case binary.HEADER_NAME:
                header_length = binary.header_length(value.decode("latin-1"))
            case b"content-encoding":
                encoding = value.decode("latin-1").strip().lower()
            case b"meguri-producer":
                producer = _text(name, value)
            case b"meguri-entity":
                entity = _text(name, value)
            case b"traceparent":
                in_trace = True
    return Head(
        model=model,
        version=version,
        length=length,
        producer=producer,
        entity=entity,
        header_length=header_length,
        encoding=encoding,
        context={n.decode("latin-1"): v.decode("latin-1") for n, v in headers} if in_trace else None,
    )


def _number(name: bytes, value: bytes) -> int:
    value = value.strip()
    if not value.isdigit() or len(value) > 18:
        raise WrongHeader(name.decode(), "a number of bytes is expected")
    return int(value)


def _text(name: bytes, value: bytes) -> str:
    text = value.strip().decode(errors="replace")
    if len(text) > MAX_NAME:
        raise WrongHeader(name.decode(), f"{len(text)} characters, at most {MAX_NAME} are accepted")
    return text
