import asyncio
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.inference.replicas import MAX_BODY, MAX_ROWS, TRACE_ID, Replica

INFER = "/v2/models/iris/infer"
IN_TRACE = {"traceparent": f"00-{TRACE_ID}-00f067aa0ba902b7-01"}


@pytest.fixture
async def service(replica, iris) -> Replica:
    await replica.follow(iris)
    return replica


async def raw(app, path: str, *messages: dict[str, Any], headers=()) -> tuple[int, Any]:
    """Call an ASGI app with these messages; return status and JSON, or (0, None) if it said nothing."""
    inbox, said = list(messages), []

    async def receive():
        return inbox.pop(0)

    async def send(message):
        said.append(message)

    await app({"type": "http", "method": "POST", "path": path, "headers": list(headers)}, receive, send)
    if not said:
        return 0, None
    return said[0]["status"], json.loads(said[1]["body"])


def part(body: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


async def test_an_answer_names_model_version_prediction_and_trace(service, iris):
    async with service.client() as client:
        response = await client.post(INFER, json=iris.body(iris.x[:2]), headers=IN_TRACE)

    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    prediction_id = answer["parameters"]["prediction_id"]
    assert answer["model_name"] == "iris"
    assert answer["model_version"] == "3"
    assert answer["id"] == prediction_id
    assert answer["parameters"]["trace_id"] == TRACE_ID
    assert answer["outputs"][0] == {"name": "label", "datatype": "INT64", "shape": [2], "data": [0, 0]}
    expected = iris.estimator.predict_proba(iris.x[:2]).ravel()
    np.testing.assert_allclose(answer["outputs"][1]["data"], expected, atol=1e-12)
    assert service.tallies.statuses == {("iris", 200): 1}


async def test_what_is_answered_stands_in_the_prediction_log(service, iris):
    async with service.client() as client:
        one = (await client.post(INFER, json=iris.body(iris.x[:1]), headers=IN_TRACE)).json()
        two = (await client.post(INFER, json=iris.body(iris.x[1:3]))).json()

    table = await service.predictions()

    first, second = one["parameters"]["prediction_id"], two["parameters"]["prediction_id"]
    assert table["prediction_id"].to_pylist() == [first, f"{second}:0", f"{second}:1"]
    assert table["label"].to_pylist() == one["outputs"][0]["data"] + two["outputs"][0]["data"]
    assert table["sepal_length"].to_pylist() == iris.x[:3, 0].tolist()
    assert table["trace_id"].to_pylist() == [TRACE_ID, two["parameters"]["trace_id"], two["parameters"]["trace_id"]]


@pytest.mark.parametrize(
    ("headers", "more", "producer"),
    [
        ({}, {}, "unknown"),
        ({"Meguri-Producer": "cam-7"}, {}, "cam-7"),
        ({}, {"parameters": {"producer": "till-2"}}, "till-2"),
        ({"Meguri-Producer": "cam-7"}, {"parameters": {"producer": "till-2"}}, "till-2"),
        ({"Meguri-Producer": "cam-7"}, {"parameters": {}}, "cam-7"),
        ({"Meguri-Producer": "巡り".encode()}, {}, "巡り"),
    ],
)
async def test_the_producer_comes_from_the_body_or_else_from_the_header(service, iris, headers, more, producer):
    async with service.client() as client:
        await client.post(INFER, json=iris.body(iris.x[:1], **more), headers=headers)

    assert (await service.predictions())["producer"].to_pylist() == [producer]


async def test_the_clients_id_comes_back_and_only_the_wanted_outputs_do(service, iris):
    asked = iris.body(iris.x[:1], id="mine", outputs=[{"name": "label"}])
    async with service.client() as client:
        answer = (await client.post(INFER, json=asked)).json()

    assert answer["id"] == "mine"
    assert [output["name"] for output in answer["outputs"]] == ["label"]
    assert (await service.predictions())["probability"].null_count == 0


async def test_everybody_gets_the_answer_to_his_own_rows_and_an_id_of_his_own(service, iris, forest):
    await service.follow(forest)
    rng = np.random.default_rng(1)

    async def ask(client, fitted, rows):
        response = await client.post(f"/v2/models/{fitted.name}/infer", json=fitted.body(rows))
        outputs = {output["name"]: output for output in response.json()["outputs"]}
        assert outputs["label"]["data"] == fitted.estimator.predict(rows).tolist()
        found = np.reshape(outputs["probabilities"]["data"], outputs["probabilities"]["shape"])
        np.testing.assert_allclose(found, fitted.estimator.predict_proba(rows), atol=1e-6)
        return response.json()["parameters"]["prediction_id"]

    questions = [
        (fitted, fitted.x[rng.integers(0, 150, size)])
        for size in rng.choice([1, 1, 3, 70], 40)
        for fitted in (iris, forest)
    ]
    async with service.client() as client:
        ids = await asyncio.gather(*(ask(client, *question) for question in questions))

    assert len(set(ids)) == 80


async def test_a_named_version_answers_only_if_it_is_the_one_served(service, iris):
    async with service.client() as client:
        served = await client.post("/v2/models/iris/versions/3/infer", json=iris.body(iris.x[:1]))
        other = await client.post("/v2/models/iris/versions/2/infer", json=iris.body(iris.x[:1]))

    assert served.status_code == 200
    assert other.status_code == 404
    assert other.json() == {"error": "version 2 of model 'iris' is not served here; version 3 is"}


async def test_an_unknown_model_is_answered_with_the_served_ones(service):
    async with service.client() as client:
        response = await client.post("/v2/models/digits/infer", json={})

    assert response.status_code == 404
    assert response.json() == {"error": "no model 'digits' is served here; served are: iris"}
    assert service.tallies.statuses == {("", 404): 1}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", INFER),
        ("POST", "/v2/models/iris/versions/3/infer/more"),
        ("POST", "/v2/models/iris/stats/3/infer"),
        ("POST", "/v2/models/iris"),
        ("GET", "/v2"),
        ("POST", "/v2/repository/index"),
    ],
)
async def test_everything_but_infer_goes_to_the_control_plane(service, method, path):
    async with service.client() as client:
        response = await client.request(method, path)

    assert response.status_code == 418
    assert response.text == f"{path} 0"
    assert service.tallies.statuses == {}


async def test_bad_data_is_a_400_that_says_why_and_is_not_logged(service, iris):
    wrong = iris.body(iris.x[:1])
    wrong["inputs"][0]["data"][2] = None
    async with service.client() as client:
        response = await client.post(INFER, json=wrong)
        await client.post(INFER, json=iris.body(iris.x[:1]))

    assert response.status_code == 400
    assert response.json() == {
        "error": "input 'x' has bad FP64 data: Expected `float`, got `null` in row 0, feature 'petal_length'; "
        "the model takes 'x': FP64 of shape [rows, 4]"
    }
    assert service.tallies.statuses == {("iris", 400): 1, ("iris", 200): 1}
    assert (await service.predictions()).num_rows == 1


async def test_too_many_rows_are_a_413(service, iris):
    async with service.client() as client:
        response = await client.post(INFER, json=iris.body(np.resize(iris.x, (MAX_ROWS + 1, 4))))

    assert response.status_code == 413
    assert f"{MAX_ROWS + 1} rows, at most {MAX_ROWS}" in response.json()["error"]


async def test_values_beyond_what_the_model_can_answer_are_a_400(service, iris):
    async with service.client() as client:
        response = await client.post(INFER, json=iris.body(np.array([[1e308, -1e308, 1e308, 1e308]])))

    assert response.status_code == 400
    assert "no answer" in response.json()["error"]


@pytest.mark.parametrize("header", [b"7", b"-1", b"x", b"1e3", b""])
async def test_a_content_length_that_is_not_the_bodys_is_a_400(service, header):
    status, answer = await raw(service.app, INFER, part(b"12345"), headers=[(b"content-length", header)])

    assert status == 400
    assert "content-length" in answer["error"]


async def test_a_body_announced_too_large_is_a_413_before_it_is_read(service):
    status, answer = await raw(service.app, INFER, headers=[(b"content-length", b"%d" % (MAX_BODY + 1))])

    assert status == 413
    assert str(MAX_BODY) in answer["error"]


async def test_a_body_that_grows_too_large_unannounced_is_a_413(service):
    endless = [part(b"a" * 1024, more=True) for _ in range(MAX_BODY // 1024 + 1)]

    assert (await raw(service.app, INFER, *endless))[0] == 413


async def test_a_body_in_pieces_is_put_together(service, iris):
    body = json.dumps(iris.body(iris.x[:1])).encode()
    pieces = [part(body[at : at + 7], more=True) for at in range(0, len(body), 7)]

    assert (await raw(service.app, INFER, *pieces, {"type": "http.request"}))[0] == 200


async def test_a_client_that_left_is_not_answered(service):
    assert await raw(service.app, INFER, part(b"{", more=True), {"type": "http.disconnect"}) == (0, None)
    assert service.tallies.statuses == {}


async def test_a_producer_of_unreasonable_length_is_a_400(service):
    assert (await raw(service.app, INFER, part(b""), headers=[(b"meguri-producer", b"p" * 129)]))[0] == 400


async def test_the_span_of_a_sampled_request_is_finished_with_what_happened(service, iris):
    async with service.client() as client:
        good = await client.post(INFER, json=iris.body(iris.x[:2]), headers=IN_TRACE)
        await client.post(INFER, content=b"", headers=IN_TRACE)
        await client.post("/v2/models/digits/infer", headers=IN_TRACE)
        await client.post(INFER, json=iris.body(iris.x[:2]))

    assert len(service.finished) == 3
    (ok, told), (bad, why), (missing, whom) = service.finished
    assert (ok, bad, missing) == (200, 400, 404)
    assert told == {
        "model": "iris",
        "version": 3,
        "rows": 2,
        "role": "champion",
        "prediction_id": good.json()["parameters"]["prediction_id"],
    }
    assert "not a V2 inference request" in why["error"]
    assert whom["model"] == "digits"


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from(["x", "FP64", "INT64"]),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.sampled_from(["inputs", "name", "shape", "datatype", "data", "id", "outputs"]), inner)
    ),
    max_leaves=20,
)
tensors = st.fixed_dictionaries(
    {
        "name": st.just("x") | json_values,
        "shape": st.just([1, 4]) | json_values,
        "datatype": st.sampled_from(["FP32", "FP64", "INT64", "INT32", "BOOL"]) | json_values,
        "data": st.lists(st.floats() | st.integers() | st.booleans(), min_size=4, max_size=4) | json_values,
    }
)
bodies = st.fixed_dictionaries(
    {"inputs": st.lists(tensors, min_size=1, max_size=2) | json_values},
    optional={"id": json_values, "parameters": json_values, "outputs": json_values},
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(body=st.binary(max_size=200) | bodies.map(json.dumps).map(str.encode))
async def test_no_body_whatever_makes_the_service_fail(service, body):
    status, answer = await raw(service.app, INFER, part(body))

    assert status in (200, 400, 413)
    assert ("error" in answer) == (status != 200)
