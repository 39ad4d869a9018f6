"""Odd predictions that stop nobody else."""

import numpy as np
import pyarrow as pa
import pytest

from tests.conftest import until
from tests.monitoring.conftest import WINDOW, message, monitoring_in, values
from tests.services import name


def at_microseconds(body: bytes, micros: int) -> bytes:
    """The same predictions at another time, which Python need not know."""
    table = pa.ipc.open_stream(body).read_all()
    times = pa.array(np.full(table.num_rows, micros, np.int64)).cast(pa.timestamp("us", "UTC"))
    table = table.set_column(1, "time", times)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()


def odd(kind: str, model: str) -> bytes:
    rows = values(WINDOW, 1)
    match kind:
        case "a time that Python does not know":
            return at_microseconds(message(model, rows), 2**62)
        case "a time before there were computers":
            return at_microseconds(message(model, rows), -(2**62))
        case "names that differ in case only":
            return message(name("other"), rows, x=rows[:, 0], X=rows[:, 1])
        case "a name with a NUL":
            return message(name("other"), rows, **{"a\x00b": rows[:, 0], "": rows[:, 1]})
        case "a producer without end":
            return message(model, rows, "p" * 5_000)
        case "a producer with a NUL":
            return message(model, rows + 9, "p\x00q")
        case "numbers that are none":
            return message(model, rows * np.inf)
        case "lists":
            return message(name("other"), rows, x=[[1.0, 2.0]] * len(rows), y=[{"a": 1}] * len(rows))
        case "a version that no database has":
            return message(model, rows, version=2**40)
    raise AssertionError(kind)


@pytest.mark.parametrize(
    "kind",
    [
        "a time that Python does not know",
        "a time before there were computers",
        "names that differ in case only",
        "a name with a NUL",
        "a producer with a NUL",
        "a producer without end",
        "numbers that are none",
        "lists",
        "a version that no database has",
    ],
)
async def test_odd_predictions_stop_no_others(broker, database_url, tmp_path, kind):
    async with monitoring_in(tmp_path, broker, database_url, tmp_path / "artifacts", name("m")) as monitoring:
        await monitoring.watch()
        await monitoring.predict(odd(kind, monitoring.model))
        last = await monitoring.predict(*(message(monitoring.model, values(WINDOW, seed), "b") for seed in (1, 2)))

        async def concluded() -> bool:
            found = (await monitoring.http.get(f"/models/{monitoring.model}/windows")).json()
            return bool(found) and found[0]["window"]["last"] >= last - 1 and all(one["decided"] for one in found)

        await until(concluded, "conclusions")
        assert (await monitoring.http.get("/health/ready")).json()["reasons"] == []
