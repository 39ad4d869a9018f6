"""The digest of a service's state: the same for the same rows, in whatever order and on whichever database they stand."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlmodel import Session, SQLModel, select

from meguri_chassis.store import utc

_MODULUS = 1 << 256


class Digest(dict[str, str]):
    """Digest by table, each SHA-256 in hex."""

    @property
    def whole(self) -> str:
        """One digest over all tables."""
        return hashlib.sha256("\n".join(f"{table} {self[table]}" for table in sorted(self)).encode()).hexdigest()


def digest(session: Session, tables: Sequence[type[SQLModel]]) -> Digest:
    """Return the digest of the tables as this session sees them.

    That of a table is over the number of its rows and the sum of their SHA-256, modulo 2**256: no order is needed, which
    databases see differently, and no row is held longer than it takes to add it (a multiset hash, AdHash of Bellare and
    Micciancio 1997; it is for finding differences, not against forgers).
    """
    return Digest({str(table.__tablename__): _of_table(session, table) for table in tables})


def rows(session: Session, table: type[SQLModel]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table in canonical form: JSON values, times in UTC, bytes in hex."""
    columns = list(table.__table__.columns)  # type: ignore[attr-defined]
    for row in session.connection().execute(select(*columns)).yield_per(1000):
        yield {column.name: _canonical(value) for column, value in zip(columns, row, strict=True)}


def _of_table(session: Session, table: type[SQLModel]) -> str:
    count = total = 0
    for row in rows(session, table):
        text = json.dumps(row, sort_keys=True, separators=(",", ":"))
        total = (total + int.from_bytes(hashlib.sha256(text.encode()).digest())) % _MODULUS
        count += 1
    return hashlib.sha256(f"{count} {total:064x}".encode()).hexdigest()


def _canonical(value: Any) -> Any:
    match value:
        case datetime():
            return utc(value).isoformat()
        case bytes():
            return value.hex()
        case Mapping():
            return {str(name): _canonical(part) for name, part in value.items()}
        case list() | tuple():
            return [_canonical(part) for part in value]
        case _:
            return value
