"""The examples of events that are kept here, as they stand on the wire."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from meguri_chassis.log import Message
from meguri_contracts.events import Event

EXAMPLES = Path(__file__).parent / "examples"
NOW = datetime(2026, 11, 20, 9, 30, tzinfo=UTC)


@dataclass(frozen=True)
class Example:
    subject: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]

    def read(self, headers: Mapping[str, str], body: Mapping[str, Any]) -> Message:
        return Message.of(self.subject, headers, json.dumps(body).encode(), sequence=42, time=NOW)

    @property
    def binary(self) -> Message:
        return self.read(self.headers, self.body)

    @property
    def structured(self) -> Message:
        attributes = {name[3:]: unquote(value) for name, value in self.headers.items() if name.startswith("ce-")}
        return self.read({}, attributes | {"data": self.body})

    @property
    def bare(self) -> Message:
        return self.read({}, self.body)


def example(kind: type[Event]) -> Example:
    return Example(**json.loads((EXAMPLES / f"{kind.kind()}.json").read_text()))
