import hashlib
import struct
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meguri_contracts.errors import Invalid
from meguri_ingest.digests import chained, content_digest

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SCHEMA = {"n": pl.Float64, "i": pl.Int64, "s": pl.String, "b": pl.Boolean, "t": pl.Datetime("us", "UTC")}
ROWS = [
    (1.5, -1, "é", True, datetime(2025, 1, 2, 3, 4, 5, 6, tzinfo=UTC)),
    (None, None, None, None, None),
    (-0.0, 2**63 - 1, "", False, EPOCH),
]


def by_hand(rows: list[tuple]) -> str:
    """The digest as its docstring tells it, with nothing but struct."""
    said = struct.pack("<Q", len(rows))
    for position, (name, kind) in enumerate(
        zip("nisbt", ["number", "integer", "string", "boolean", "timestamp"], strict=True)
    ):
        values = [row[position] for row in rows]
        said += struct.pack("<Q", 1) + name.encode() + struct.pack("<Q", len(kind)) + kind.encode()
        said += bytes(value is None for value in values)
        match kind:
            case "string":
                texts = [(value or "").encode() for value in values]
                said += b"".join(struct.pack("<Q", len(text)) for text in texts) + b"".join(texts)
            case "timestamp":
                said += b"".join(struct.pack("<q", ((v or EPOCH) - EPOCH) // timedelta(microseconds=1)) for v in values)
            case _:
                code = {"number": "<d", "integer": "<q", "boolean": "<?"}[kind]
                said += b"".join(struct.pack(code, value or (0 if value is None else value)) for value in values)
    return hashlib.sha256(said).hexdigest()


def test_the_digest_is_what_its_docstring_tells():
    assert content_digest(pl.DataFrame(ROWS, SCHEMA, orient="row")) == by_hand(ROWS)
    assert content_digest(pl.DataFrame([], SCHEMA)) == by_hand([])


def test_the_digest_of_these_rows_stays_for_ever():
    known = "5e5cb6e6f0cce9cd4b6583b133d0b7d2870bfdaf42eb55c2673d5add0f9ffc67"
    assert content_digest(pl.DataFrame(ROWS, SCHEMA, orient="row")) == known


def test_it_does_not_matter_how_rows_lie_in_memory():
    frame = pl.DataFrame(ROWS, SCHEMA, orient="row")
    pieces = pl.concat([frame.slice(0, 1), frame.slice(1, 2)], rechunk=False)

    assert pieces.n_chunks() == 2
    assert content_digest(pieces) == content_digest(frame)


def test_every_difference_shows():
    frame = pl.DataFrame({"a": ["x", "yz"], "b": [0, None]}, schema={"a": pl.String, "b": pl.Int64})
    others = [
        frame.with_columns(a=pl.Series(["xy", "z"])),
        frame.with_columns(b=pl.Series([0, 0])),
        frame.rename({"b": "c"}),
        frame.select("b", "a"),
        frame.reverse(),
        frame.with_columns(pl.col("b").cast(pl.Float64)),
        frame.head(1),
    ]

    assert len({content_digest(each) for each in (frame, *others)}) == len(others) + 1


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=4) | st.none(), max_size=5), st.lists(st.text(max_size=4) | st.none(), max_size=5))
def test_two_columns_of_text_have_one_digest_only_when_they_are_equal(one, other):
    digests = [content_digest(pl.DataFrame({"s": values}, schema={"s": pl.String})) for values in (one, other)]

    assert (digests[0] == digests[1]) == (one == other)


def test_a_column_of_another_type_has_no_digest():
    with pytest.raises(Invalid, match="column 'l'"):
        content_digest(pl.DataFrame({"l": [[1]]}))


def test_a_history_is_told_apart_by_its_order_and_its_length():
    one, other = (content_digest(pl.DataFrame({"a": [value]})) for value in (1, 2))
    histories = [(one,), (one, one), (one, other), (other, one)]

    ends = set()
    for history in histories:
        end = ""
        for digest in history:
            end = chained(end, digest)
        ends.add(end)
    assert len(ends) == len(histories)
