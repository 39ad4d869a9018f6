"""Whatever is sent to a service, over HTTP or NATS: an answer that is no 5xx, no crash, no consumer that stands still."""

import asyncio
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import nats
import pytest
import schemathesis
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nats.errors import Error as NatsError

from examples.digits.publish import images
from infra.local.processes import SERVICES, Laptop
from infra.local.run import wait_until_ready
from meguri.client import Meguri, address, broker, publish
from meguri.following import follow
from meguri.provisioning import provision
from meguri_contracts.events import BY_KIND
from meguri_contracts.topology import CONSUMERS, EVENT_PREFIX, LOG, PREDICTION_PREFIX, PREDICTIONS
from tests.conftest import PATIENCE, until
from tests.system.conftest import environment

pytestmark = pytest.mark.timeout(600)

EXAMPLES = Path(__file__).parents[1] / "contracts/examples"
AS_MANY_AS = int(os.environ.get("MEGURI_FUZZ_EXAMPLES", "15"))
"""Inputs per route, and a twentieth of those per kind of message."""
fuzzing = settings(
    max_examples=AS_MANY_AS, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    """All processes, fresh, with one model that serves; the same ones, unharmed, at the end."""
    var = tmp_path_factory.mktemp("fuzz") / "var"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(var).items():
            patch.setenv(name, value)
        patch.delenv("MEGURI_NATS_URL", raising=False)
        with Laptop(var) as laptop:
            asyncio.run(provision(broker()))
            wait_until_ready(laptop)
            with Meguri(actor="test") as meguri:
                meguri.apply(Path("models/digits.yaml").read_bytes())
            asyncio.run(_a_model_serves())
            pids = {service: laptop.pid(service) for service in SERVICES}
            yield laptop
            assert {service: laptop.pid(service) for service in SERVICES} == pids, "a process has died"


async def _a_model_serves() -> None:
    loaded = follow("model-loaded", "digits")
    await publish("digits", records=images(0, 910), producer="fuzz")
    async with asyncio.timeout(2 * PATIENCE):
        await anext(loaded)


@schemathesis.serializer("application/vnd.apache.arrow.stream")
def as_bytes(_: schemathesis.SerializationContext, value: object) -> bytes:
    """What is no Arrow stream, mostly."""
    return value if isinstance(value, bytes) else json.dumps(value, default=repr).encode()


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_answers_whatever_it_is_asked(fuzzed, service):
    schema = schemathesis.openapi.from_url(f"{address(service)}/openapi.json")
    for operation in (found.ok() for found in schema.get_all_operations()):
        fuzzing(given(operation.as_strategy())(_is_answered))()


def _is_answered(case: schemathesis.Case) -> None:
    if "wait" in (case.query or {}):
        # Valid, and nobody wants to wait for it here.
        case.query["wait"] = 0
    answer = case.call(timeout=PATIENCE)
    assert answer.status_code < 500, f"{case.as_curl_command()}\n{answer.status_code} {answer.text[:500]}"
    if answer.status_code >= 400 and answer.status_code not in (404, 405):
        assert answer.json()["error"], "every refusal says why"


# --- bodies that no schema describes ----------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
INFER = {
    "inputs": [{"name": "input", "shape": [1, 64], "datatype": "FP64", "data": [0.0] * 64}],
    "parameters": {"producer": "fuzz"},
}
SPEC = yaml.safe_load(Path("models/digits.yaml").read_text())
BODIES = {
    ("inference", "/v2/models/digits/infer"): INFER,
    ("registry", "/specs"): SPEC,
    ("ingest", "/events"): {"specversion": "1.0", "id": "1", "source": "s", "type": "meguri.data-arrived.v1",
                            "subject": "digits", "data": {"records": [{"x": 1.0}]}},
}  # fmt: skip


@st.composite
def spoilt(draw: st.DrawFn, whole: dict[str, Any]) -> bytes:
    """A body with one part of it replaced by something else, or its bytes cut or changed."""
    copy = json.loads(json.dumps(whole))
    place, part = draw(st.sampled_from(_places(copy)))
    place[part] = draw(json_values)
    body = json.dumps(copy).encode()
    if draw(st.integers(0, 4)) == 0:
        cut = draw(st.integers(0, len(body)))
        body = body[:cut] + draw(st.binary(max_size=8)) + body[cut + draw(st.integers(0, 8)) :]
    return body


def _places(value: Any) -> list[tuple[Any, Any]]:
    parts = list(value.items()) if isinstance(value, dict) else list(enumerate(value))[:3]
    below = [place for _, inner in parts if isinstance(inner, dict | list) for place in _places(inner)]
    return [(value, part) for part, _ in parts] + below


@pytest.mark.parametrize(("service", "path"), BODIES, ids=lambda part: part.strip("/"))
def test_a_body_that_is_nearly_right_is_answered(fuzzed, service, path):
    @settings(fuzzing, max_examples=20 * AS_MANY_AS)
    @given(spoilt(BODIES[service, path]))
    def answered(body: bytes) -> None:
        answer = client.post(address(service) + path, content=body)
        assert answer.status_code < 500, f"{body!r}\n{answer.status_code} {answer.text[:500]}"

    with httpx.Client(timeout=PATIENCE) as client:
        right = client.post(address(service) + path, json=BODIES[service, path])
        assert right.status_code in (200, 202), right.text
        answered()


# --- messages ---------------------------------------------------------------------------------------------------------

header_values = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40)
NAMES = (
    *("ce-id", "ce-source", "ce-type", "ce-time", "ce-hops", "ce-causeid", "ce-journeyid", "ce-specversion", "x"),
    *("traceparent", "tracestate", "baggage", "content-type", "Status", "Description", "meguri-stored"),
)
ODD = ("meguri.data-arrived.v2", "99999999999", "0001-01-01T00:00:00-14:00", "%00%ff")
headers = st.dictionaries(st.sampled_from(NAMES), header_values | st.sampled_from(ODD), max_size=6)
tokens = st.text("abcxyz019-_", min_size=1, max_size=12)


@st.composite
def messages(draw: st.DrawFn, kind: str) -> tuple[str, bytes, dict[str, str]]:
    example = json.loads((EXAMPLES / f"{kind}.json").read_text())
    key = f"fuzz-{draw(st.integers(0, 3))}"
    body = {**example["body"], BY_KIND[kind].key_field: key}
    stated = {name: value for name, value in example["headers"].items() if name.startswith("ce-")}
    stated = (stated if draw(st.booleans()) else {}) | {"ce-id": draw(tokens), "ce-subject": key} | draw(headers)
    if draw(st.integers(0, 5)) == 0:
        key = ".".join(draw(st.lists(tokens, max_size=3)))
    raw = draw(spoilt(body) | st.binary(max_size=200) | st.just(json.dumps(body).encode()))
    return f"{EVENT_PREFIX}.{kind}" + (f".{key}" if key else ""), raw, stated


async def _publish(found: list[tuple[str, bytes, dict[str, str]]], stream: str) -> None:
    client = await nats.connect(broker())
    try:
        for subject, body, stated in found:
            # What the broker itself refuses has reached nobody.
            with suppress(NatsError, ValueError):
                await client.jetstream().publish(subject, body, stream=stream, headers=stated or None)
    finally:
        await client.close()


async def _nothing_stands_still() -> None:
    client = await nats.connect(broker())
    try:
        js = client.jetstream()

        async def drained() -> bool:
            found = [await js.consumer_info(consumer.stream, consumer.name) for consumer in CONSUMERS]
            return all(info.num_pending == 0 for info in found)

        await until(drained, "the end of what was published")
        last = (await js.stream_info(LOG)).state.last_seq
        with Meguri() as meguri:
            meguri.has_seen(last)
            await asyncio.to_thread(meguri.models)
            await asyncio.to_thread(meguri.episodes)
            await until(lambda: all(meguri.health(service)["ready"] for service in SERVICES), "readiness")
    finally:
        await client.close()


@pytest.mark.parametrize("kind", sorted(BY_KIND))
async def test_messages_of_a_kind_that_are_nearly_right_stop_nobody(fuzzed, kind):
    found: list[tuple[str, bytes, dict[str, str]]] = []

    @fuzzing
    @given(messages(kind))
    def collect(message: tuple[str, bytes, dict[str, str]]) -> None:
        found.append(message)

    collect()
    await _publish(found, LOG)
    await _nothing_stands_still()


async def test_predictions_that_are_none_stop_nobody(fuzzed):
    found: list[tuple[str, bytes, dict[str, str]]] = []

    @settings(fuzzing)
    @given(tokens, st.binary(max_size=300), headers)
    def collect(model: str, body: bytes, stated: dict[str, str]) -> None:
        found.append((f"{PREDICTION_PREFIX}.{model}", body, stated))

    collect()
    await _publish(found, PREDICTIONS)
    await _nothing_stands_still()
