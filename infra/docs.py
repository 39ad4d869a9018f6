"""`make docs`: writes the OpenAPI document of each service and one AsyncAPI document of all events to build/docs."""

import importlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from meguri_contracts.events import EVENTS, Event
from meguri_contracts.topology import CONSUMERS, PORTS, SAID_BY, subject

FOLDER = Path("build/docs")


def main() -> int:
    FOLDER.mkdir(parents=True, exist_ok=True)
    documents = {"asyncapi.json": asyncapi()} | {
        f"{name}.openapi.json": openapi(name) for name in PORTS if name != "console"
    }
    for name, document in documents.items():
        (FOLDER / name).write_text(json.dumps(document, indent=2) + "\n")
        print(FOLDER / name)
    return 0


def openapi(service: str) -> dict[str, Any]:
    """Return the OpenAPI document of a service, which is put together but not started."""
    with tempfile.TemporaryDirectory() as var:
        os.environ["MEGURI_VAR"] = var
        return importlib.import_module(f"meguri_{service}.app").build().app.openapi()


def asyncapi() -> dict[str, Any]:
    """Return the AsyncAPI 3.0 document: a channel and a message per event, and who says and hears it."""
    schemas: dict[str, Any] = {}
    channels = {event.kind(): _channel(event, schemas) for event in EVENTS}
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "meguri", "version": "0.1.0", "description": "The events of meguri on NATS JetStream."},
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": dict(_operation(*pair) for pair in _pairs()),
        "components": {"schemas": schemas},
    }


def _channel(event: type[Event], schemas: dict[str, Any]) -> dict[str, Any]:
    return {
        "address": subject(event.kind(), f"{{{event.key_field}}}"),
        "parameters": {event.key_field: {"description": f"Name of the {event.key_field}."}},
        "messages": {event.kind(): _message(event, schemas)},
    }


def _message(event: type[Event], schemas: dict[str, Any]) -> dict[str, Any]:
    payload = event.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= payload.pop("$defs", {})
    text = {"type": "string"}
    attributes = (
        "ce-id",
        "ce-source",
        "ce-specversion",
        "ce-type",
        "ce-time",
        "ce-subject",
        "ce-causeid",
        "ce-journeyid",
    )
    return {
        "name": event.type,
        "description": event.__doc__,
        "headers": {"type": "object", "properties": dict.fromkeys((*attributes, "traceparent", "Nats-Msg-Id"), text)},
        "payload": payload,
    }


def _pairs() -> list[tuple[str, str, type[Event]]]:
    said = [(service, "send", event) for event, service in SAID_BY.items()]
    heard = {(consumer.name.split("-")[0], "receive", event) for consumer in CONSUMERS for event in consumer.hears}
    return said + sorted(heard, key=str)


def _operation(service: str, action: str, event: type[Event]) -> tuple[str, dict[str, Any]]:
    operation = {"action": action, "channel": {"$ref": f"#/channels/{event.kind()}"}, "title": f"{service} {action}s"}
    return f"{service}-{action}-{event.kind()}", operation


if __name__ == "__main__":
    sys.exit(main())
