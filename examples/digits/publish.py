"""An upstream: a scanner that publishes images as data-arrived. Plain nats-py; knows nothing of meguri but subject and JSON.

    python examples/digits/publish.py scanner-a 0 300            images 0 to 299, as they were scanned
    python examples/digits/publish.py scanner-b 300 450 --wrong 0.4     with 40 % wrong labels
    python examples/digits/publish.py scanner-c 450 600 --lamp 0.4      under a lamp that gives 40 % of its light

Prints the event's id and the id of its trace.
"""

import argparse
import asyncio
import json
import os
import secrets
import time

import nats
import numpy as np
from sklearn.datasets import load_digits

SHUFFLE = 1
"""Seed of the one order in which everybody deals the images."""


def images(first: int, last: int, *, lamp: float = 1.0, wrong: float = 0.0) -> list[dict[str, float]]:
    """Return labelled images as rows: 64 pixels from 0 to 16, and the digit."""
    digits = load_digits()
    chosen = np.random.default_rng(SHUFFLE).permutation(len(digits.target))[first:last]
    pixels, labels = digits.data[chosen] * lamp, digits.target[chosen]
    mistaken = np.random.default_rng(first).random(len(labels)) < wrong
    labels = np.where(mistaken, (labels + 1 + np.arange(len(labels)) % 9) % 10, labels)
    return [
        {f"pixel_{i}": round(float(value), 3) for i, value in enumerate(row)} | {"digit": int(label)}
        for row, label in zip(pixels, labels, strict=True)
    ]


async def publish(producer: str, rows: list[dict[str, float]], event: str) -> str:
    """Publish the rows as one event in binary mode; return the id of the trace that begins here."""
    trace_id, span_id, began = secrets.token_hex(16), secrets.token_hex(8), time.time_ns()
    client = await nats.connect(os.environ.get("MEGURI_NATS_URL", "nats://127.0.0.1:4222"))
    try:
        await client.jetstream().publish(
            "meguri.events.data-arrived.digits",
            json.dumps({"records": rows}).encode(),
            headers={
                "Nats-Msg-Id": event,
                "ce-specversion": "1.0",
                "ce-id": event,
                "ce-source": producer,
                "ce-type": "meguri.data-arrived.v1",
                "traceparent": f"00-{trace_id}-{span_id}-01",
            },
        )
    finally:
        await client.close()
    keep_span(producer, event, trace_id, span_id, began)
    return trace_id


def keep_span(producer: str, event: str, trace_id: str, span_id: str, began: int) -> None:
    """Write the scanner's own span where the services write theirs, as one line of OTLP JSON."""
    attributes = [{"key": "meguri.event.id", "value": {"stringValue": event}}]
    span = {
        "traceId": trace_id,
        "spanId": span_id,
        "name": "publish data-arrived",
        "kind": 4,
        "startTimeUnixNano": str(began),
        "endTimeUnixNano": str(time.time_ns()),
        "attributes": attributes,
        "status": {},
    }
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": producer}}]}
    line = {"resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": {"name": "scanner"}, "spans": [span]}]}]}
    folder = os.path.join(os.environ.get("MEGURI_VAR", "var"), "traces")
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, f"{producer}.jsonl"), "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("producer")
    parser.add_argument("first", type=int)
    parser.add_argument("last", type=int)
    parser.add_argument("--lamp", type=float, default=1.0, help="brightness, 1 is as it was scanned")
    parser.add_argument("--wrong", type=float, default=0.0, help="share of wrong labels")
    parser.add_argument("--id", help="of the event; a new one if not given")
    args = parser.parse_args()
    event = args.id or f"{args.producer}-{secrets.token_hex(8)}"
    rows = images(args.first, args.last, lamp=args.lamp, wrong=args.wrong)
    trace_id = asyncio.run(publish(args.producer, rows, event))
    print(json.dumps({"event": event, "rows": len(rows), "trace": trace_id}))


if __name__ == "__main__":
    main()
