"""All ways to ask a model, against a service on real sockets and a real broker: an unmodified tritonclient, HTTP, NATS."""

import asyncio
import csv
import gzip
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import nats
import numpy as np
import pytest
import tritonclient.http as triton
import uvicorn
from nats.aio.client import Client
from nats.aio.msg import Msg
from tritonclient.utils import InferenceServerException

from meguri_chassis.artifacts import Artifacts
from meguri_chassis.service import Service
from meguri_contracts.topology import INFER_PREFIX, PREDICTION_PREFIX, PREDICTIONS
from meguri_inference import replying
from meguri_inference.app import build
from meguri_inference.protocol import Codec
from meguri_inference.settings import Settings
from tests.conftest import PATIENCE, until
from tests.inference.inferring import Inference
from tests.inference.replicas import rows_of
from tests.inference.signatures import PEOPLE
from tests.services import Wire, name, running, wire


@dataclass
class Ways:
    """A service that serves `fitted` as `model`, and everything that it can be asked with."""

    fitted: Any
    model: str
    http: httpx.AsyncClient
    triton: "Threaded"
    nats: Client

    async def by_message(self, body: bytes, **headers: str) -> Msg:
        found = {key.replace("_", "-"): value for key, value in headers.items()}
        return await self.nats.request(f"{INFER_PREFIX}.{self.model}", body, timeout=PATIENCE, headers=found or None)


class Threaded:
    """A tritonclient in a thread for each call: it does not know our event loop, which the service needs meanwhile."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __call__(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return await asyncio.to_thread(self._call, method, *args, **kwargs)

    def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        with triton.InferenceServerClient(f"127.0.0.1:{self._port}", network_timeout=PATIENCE) as client:
            return getattr(client, method)(*args, **kwargs)


@asynccontextmanager
async def served(service: Service) -> AsyncIterator[int]:
    """Serve as the service does, on a free port of the loopback."""
    config = uvicorn.Config(service._front, http=service._protocol, lifespan="off", log_level="critical")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        # The kernel queues who connects before uvicorn accepts, so there is nothing to wait for.
        running = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            await running


@pytest.fixture
async def ways(broker, tmp_path, flowers) -> AsyncIterator[Ways]:
    settings = Settings(nats_url=broker.url, var=tmp_path, linger=0.01, max_body_bytes=200_000, max_rows=1000)
    service, model = build(settings), name("flowers")
    async with (
        running(service) as inside,
        wire(broker) as beside,
        served(service) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http,
    ):
        await Inference(inside, beside, Artifacts(settings.artifacts_url), model).serve(flowers, 7)
        client = await nats.connect(broker.url)
        try:
            yield Ways(flowers, model, http, Threaded(port), client)
        finally:
            await client.close()


def asked(rows: np.ndarray, *, binary: bool = True) -> list[triton.InferInput]:
    tensor = triton.InferInput("x", list(rows.shape), "FP64")
    tensor.set_data_from_numpy(rows, binary_data=binary)
    return [tensor]


# --- an unmodified tritonclient ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"request_compression_algorithm": "gzip"},
        {"request_compression_algorithm": "deflate"},
        {"response_compression_algorithm": "gzip"},
        {"outputs": [triton.InferRequestedOutput("probabilities"), triton.InferRequestedOutput("label")]},
        {"outputs": [triton.InferRequestedOutput(each, binary_data=False) for each in ("label", "probabilities")]},
        {
            "outputs": [
                triton.InferRequestedOutput("label", binary_data=False),
                triton.InferRequestedOutput("probabilities", binary_data=True),
            ]
        },
        {"model_version": "7", "request_id": "mine"},
    ],
    ids=["default", "gzip", "deflate", "answer in gzip", "binary outputs", "JSON outputs", "both", "version and id"],
)
@pytest.mark.parametrize("binary", [True, False], ids=["binary", "JSON"])
async def test_tritonclient_is_answered_what_scikit_learn_says(ways, binary, options):
    x = ways.fitted.x[[0, 60, 140]]

    result = await ways.triton("infer", ways.model, asked(x, binary=binary), **options)

    labels = [label.decode() if isinstance(label, bytes) else label for label in result.as_numpy("label")]
    assert labels == ways.fitted.estimator.predict(x).tolist()
    np.testing.assert_allclose(result.as_numpy("probabilities"), ways.fitted.estimator.predict_proba(x), atol=1e-12)
    answer = result.get_response()
    assert (answer["model_name"], answer["model_version"]) == (ways.model, "7")
    assert answer["id"] == options.get("request_id", answer["parameters"]["prediction_id"])


async def test_tritonclient_may_send_each_feature_as_an_input(ways):
    inputs = []
    for at, feature in enumerate(ways.fitted.deployed.signature.features):
        tensor = triton.InferInput(feature, [5, 1], "FP32")
        inputs.append(tensor.set_data_from_numpy(ways.fitted.x[:5, [at]].astype(np.float32), binary_data=at % 2 == 0))

    result = await ways.triton("infer", ways.model, inputs)

    assert [label.decode() for label in result.as_numpy("label")] == ["setosa"] * 5


def test_tritonclient_sends_texts_and_every_other_type_as_they_are():
    columns = {
        "age": np.array([[41], [2**62]]),
        "height": np.array([[1.7], [1.9]]),
        "city": np.array([["Kyōto"], [""]], object),
        "member": np.array([[True], [False]]),
        "score": np.array([[0.1], [0.2]], np.float32),
    }
    inputs = []
    for tensor in PEOPLE.inputs:
        given = triton.InferInput(tensor.name, [2, 1], tensor.datatype)
        inputs.append(given.set_data_from_numpy(columns[tensor.name], binary_data=tensor.name != "height"))
    body, length = triton.InferenceServerClient.generate_request_body(inputs)

    x = Codec("people", 1, PEOPLE).decode(body, max_rows=2, header_length=length).x

    assert x.tolist() == [
        [41, 1.7, "Kyōto", True, float(np.float32(0.1))],
        [2**62, 1.9, "", False, float(np.float32(0.2))],
    ]


async def test_tritonclient_finds_health_metadata_configuration_and_index(ways):
    model = ways.model
    assert await ways.triton("is_server_live")
    assert await ways.triton("is_server_ready")
    assert await ways.triton("is_model_ready", model)
    assert await ways.triton("is_model_ready", model, "7")
    assert not await ways.triton("is_model_ready", model, "8")
    assert not await ways.triton("is_model_ready", "nobody")
    assert (await ways.triton("get_server_metadata"))["extensions"] == ["binary_tensor_data", "model_configuration"]
    metadata = await ways.triton("get_model_metadata", model, "7")
    assert (metadata["inputs"][0]["name"], metadata["inputs"][0]["shape"]) == ("x", [-1, 4])
    assert [output["name"] for output in metadata["outputs"]] == ["label", "probabilities"]
    config = await ways.triton("get_model_config", model)
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP64", "dims": [-1, 4]}]
    index = await ways.triton("get_model_repository_index")
    assert {"name": model, "version": "7", "state": "READY", "reason": ""} in index


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (("load_model", "iris"), "[400] models are not loaded"),
        (("unload_model", "iris"), "[400] models are not loaded"),
        (("infer", "nobody", asked(np.zeros((1, 4)))), "[404] no model 'nobody' is served here"),
        (("get_inference_statistics", "nobody"), "[404] Not Found"),
        (("get_model_metadata", "NOBODY"), "[422] path.name"),
    ],
    ids=["load", "unload", "no model", "no route", "no name"],
)
async def test_tritonclient_is_told_what_is_wrong(ways, call, says):
    with pytest.raises(InferenceServerException) as caught:
        await ways.triton(*call)

    assert str(caught.value).startswith(says)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/nothing", 404),
        ("DELETE", "/v2", 405),
        ("GET", "/v2/models/NOBODY", 422),
        ("GET", "/v2/models/nobody", 404),
        ("GET", "/v2/models/nobody/versions/1/config", 404),
        ("POST", "/v2/models/nobody/infer", 404),
        ("POST", "/v2/repository/models/nobody/unload", 400),
    ],
)
async def test_every_error_of_v2_says_why_under_one_name(ways, method, path, status):
    answer = await ways.http.request(method, path)

    assert answer.status_code == status
    assert answer.json()["error"]


# --- compressed bodies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoding", "body", "status", "says"),
    [
        ("br", b"{}", 400, "gzip, x-gzip, deflate"),
        ("gzip", b"{}", 400, "not gzip"),
        ("deflate", b"{}", 400, "not deflate"),
        ("gzip", "cut", 400, "not one whole gzip stream"),
        ("gzip", "bomb", 413, "larger than the 200000 bytes"),
        ("identity", b"{}", 400, "required field `inputs`"),
    ],
)
async def test_a_body_that_is_not_compressed_as_it_says_is_refused(ways, encoding, body, status, says):
    content = {"cut": gzip.compress(b"{}" * 100)[:-9], "bomb": gzip.compress(b" " * 10_000_000)}.get(body, body)

    answer = await ways.http.post(
        f"/v2/models/{ways.model}/infer", content=content, headers={"Content-Encoding": encoding}
    )

    assert answer.status_code == status
    assert says in answer.json()["error"]


async def test_rows_may_come_compressed_too(ways):
    columns = {feature: [1.5] for feature in ways.fitted.deployed.signature.features}
    body = gzip.compress(json.dumps({"columns": columns}).encode())
    path, headers = f"/models/{ways.model}/predict", {"Content-Encoding": "gzip"}

    assert (await ways.http.post(path, content=body, headers=headers)).status_code == 200
    bomb = await ways.http.post(path, content=gzip.compress(b" " * 10_000_000), headers=headers)
    assert (bomb.status_code, "200000 bytes" in bomb.json()["error"]) == (413, True)


@pytest.mark.parametrize(
    ("model", "content", "status", "says"),
    [
        (None, b'{"rows": [{"sepal_length": "long"}]}', 400, "row 0 lacks column"),
        (None, b"{", 400, "not JSON with rows or columns"),
        ("nobody", b"{}", 404, "no model 'nobody' is served here"),
        (None, b" " * 200_001, 413, "larger than the 200000 bytes"),
    ],
)
async def test_rows_that_cannot_be_answered_are_refused_in_words(ways, model, content, status, says):
    answer = await ways.http.post(f"/models/{model or ways.model}/predict", content=content)

    assert answer.status_code == status
    assert says in answer.json()["error"]


# --- one model, one answer --------------------------------------------------------------------------------------------


async def test_the_same_rows_get_the_same_answer_on_every_way(ways):
    x = ways.fitted.x[[1, 70, 149]]
    features = ways.fitted.deployed.signature.features
    expected = ways.fitted.load()._run([x])[0].outputs
    labels, probabilities = expected[0].tolist(), expected[1].tolist()
    as_json = json.dumps(ways.fitted.body(x)).encode()
    as_binary, length = triton.InferenceServerClient.generate_request_body(asked(x))
    v2, plain = f"/v2/models/{ways.model}/infer", f"/models/{ways.model}/predict"
    columns = {"columns": {feature: x[:, at].tolist() for at, feature in enumerate(features)}}
    rows = {"rows": [dict(zip(features, row, strict=True)) for row in x.tolist()]}
    lines = "\n".join([",".join(features), *(",".join(map(str, row)) for row in x.tolist())])

    found = {
        "V2 in JSON": from_v2((await ways.http.post(v2, content=as_json)).content),
        "NATS in JSON": from_v2((await ways.by_message(as_json)).data),
        "columns": from_rows((await ways.http.post(plain, json=columns)).json()),
        "rows": from_rows((await ways.http.post(plain, json=rows)).json()),
        "CSV": from_rows((await ways.http.post(plain, content=lines, headers={"Content-Type": "text/csv"})).json()),
        "CSV in CSV": from_csv((await ways.http.post(plain, json=rows, headers={"Accept": "text/csv"})).text),
    }
    header = {"Inference-Header-Content-Length": str(length)}
    in_binary = await ways.http.post(v2, content=as_binary, headers=header)
    found["V2 in binary"] = from_binary(in_binary.content, in_binary.headers)
    message = await ways.by_message(as_binary, Inference_Header_Content_Length=str(length))
    found["NATS in binary"] = from_binary(message.data, message.headers)

    assert found == dict.fromkeys(found, (labels, probabilities))


Answered = tuple[list[str], list[list[float]]]


def from_v2(body: bytes) -> Answered:
    label, probabilities = json.loads(body)["outputs"]
    return label["data"], np.reshape(probabilities["data"], probabilities["shape"]).tolist()


def from_binary(body: bytes, headers: Any) -> Answered:
    result = triton.InferenceServerClient.parse_response_body(
        body, header_length=int(headers["Inference-Header-Content-Length"])
    )
    return [label.decode() for label in result.as_numpy("label")], result.as_numpy("probabilities").tolist()


def from_rows(answer: dict[str, Any]) -> Answered:
    return [row["label"] for row in answer["predictions"]], [row["probabilities"] for row in answer["predictions"]]


def from_csv(text: str) -> Answered:
    rows = list(csv.DictReader(text.splitlines()))
    return [row["label"] for row in rows], [[float(row[f"probability_{at}"]) for at in range(3)] for row in rows]


# --- over NATS --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "headers", "status", "says"),
    [
        (b"{", {}, "400", "not a V2 inference request"),
        (b"{}", {"Inference_Header_Content_Length": "3"}, "400", "the whole body has 2"),
        (b"{}", {"Inference_Header_Content_Length": "x"}, "400", "a number of bytes"),
        (b"{}", {"Meguri_Producer": "p" * 129}, "400", "meguri-producer"),
        (b"{}", {"Status": "503"}, "400", "not a V2 inference request"),
        (b"{}", {"Content_Encoding": "gzip"}, "400", "not gzip"),
    ],
)
async def test_a_bad_message_is_answered_with_status_and_reason(ways, body, headers, status, says):
    reply = await ways.by_message(body, **headers)

    assert reply.headers[replying.STATUS] == status
    assert says in json.loads(reply.data)["error"]


async def test_a_message_for_a_model_that_nobody_serves_is_a_404(ways):
    reply = await ways.nats.request(f"{INFER_PREFIX}.nobody", b"{}", timeout=PATIENCE)

    assert reply.headers[replying.STATUS] == "404"
    assert "no model 'nobody' is served here" in json.loads(reply.data)["error"]


async def test_more_messages_than_can_be_in_hand_are_told_to_come_again_and_harm_nobody(ways, monkeypatch):
    monkeypatch.setattr(replying, "MAX_IN_HAND", 20)
    body = json.dumps(ways.fitted.body(ways.fitted.x[:1])).encode()

    replies = await asyncio.gather(*(ways.by_message(body) for _ in range(500)))
    later = await ways.by_message(body)

    statuses = [reply.headers[replying.STATUS] for reply in replies]
    assert set(statuses) == {"200", "503"}
    assert all(
        "in hand; try again" in reply.data.decode() for reply in replies if reply.headers[replying.STATUS] == "503"
    )
    assert later.headers[replying.STATUS] == "200"


async def test_messages_with_more_bytes_than_can_be_in_hand_are_told_to_come_again(ways, monkeypatch):
    body = json.dumps(ways.fitted.body(ways.fitted.x[:100])).encode()
    monkeypatch.setattr(replying, "MAX_BYTES_IN_HAND", 3 * len(body))

    replies = await asyncio.gather(*(ways.by_message(body) for _ in range(100)))
    later = await ways.by_message(body)

    assert {reply.headers[replying.STATUS] for reply in replies} == {"200", "503"}
    assert later.headers[replying.STATUS] == "200"


async def test_an_answer_too_large_for_the_broker_is_refused_in_words(ways, monkeypatch):
    monkeypatch.setattr(replying, "_HEAD_BYTES", ways.nats.max_payload)

    reply = await ways.by_message(json.dumps(ways.fitted.body(ways.fitted.x[:1])).encode())

    assert reply.headers[replying.STATUS] == "413"
    assert "ask for fewer rows or outputs" in json.loads(reply.data)["error"]


async def test_a_message_that_wants_no_reply_is_let_go(ways):
    await ways.nats.publish(f"{INFER_PREFIX}.{ways.model}", b"{}")

    body = json.dumps(ways.fitted.body(ways.fitted.x[:1])).encode()
    assert (await ways.by_message(body)).headers[replying.STATUS] == "200"


async def test_of_several_replicas_one_answers_and_who_leaves_answers_what_it_has(broker, tmp_path, flowers):
    model, answered = name("flowers"), []
    settings = [Settings(nats_url=broker.url, var=tmp_path, replica=f"r{at}", linger=0.01) for at in range(2)]
    body = json.dumps(flowers.body(flowers.x[:1])).encode()
    async with wire(broker) as beside:
        client = await nats.connect(broker.url)
        async with running(build(settings[0])) as first:
            inference = Inference(first, beside, Artifacts(settings[0].artifacts_url), model)
            await inference.serve(flowers, 1)
            async with running(build(settings[1])) as second:
                await until(lambda: Inference(second, beside, inference.artifacts, model).serves(1), "the second")
                asks = [
                    asyncio.create_task(client.request(f"{INFER_PREFIX}.{model}", body, timeout=PATIENCE))
                    for _ in range(200)
                ]
                await asks[0]
            answered = await asyncio.gather(*asks)
        await client.close()

    assert [reply.headers[replying.STATUS] for reply in answered] == ["200"] * 200
    ids = {json.loads(reply.data)["id"] for reply in answered}
    assert len(ids) == 200


async def test_predictions_by_message_and_by_rows_are_logged_like_others(ways):
    body = json.dumps(ways.fitted.body(ways.fitted.x[:1])).encode()
    reply = await ways.by_message(body, Meguri_Producer="cam-7")
    row = dict(zip(ways.fitted.deployed.signature.features, ways.fitted.x[0].tolist(), strict=True))
    answer = await ways.http.post(f"/models/{ways.model}/predict", json={"rows": [row], "producer": "till-2"})
    wanted = {json.loads(reply.data)["id"]: "cam-7", answer.json()["prediction_id"]: "till-2"}

    metrics = (await ways.http.get("/metrics")).text
    assert f'meguri_infer_rows_total{{model="{ways.model}",role="champion",version="7"}} 2.0' in metrics
    assert await until(lambda: logged(ways, wanted), "both in the log")


async def logged(ways: Ways, wanted: dict[str, str]) -> bool:
    messages = await Wire(ways.nats.jetstream()).stored(PREDICTIONS, f"{PREDICTION_PREFIX}.{ways.model}")
    rows = [row for message in messages for row in rows_of(message.data).to_pylist()]
    return {row["prediction_id"]: row["producer"] for row in rows} == wanted
