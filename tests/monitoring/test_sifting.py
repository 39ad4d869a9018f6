"""Requests that an evaluator cannot do are found, and the others are done."""

from collections.abc import Mapping

import polars as pl
import pytest

from meguri_monitoring.evaluators import sifting
from meguri_monitoring.evaluators.requests import numbered
from meguri_monitoring.evaluators.running import PlugInFailed
from meguri_monitoring.evaluators.sifting import sift


def predictions(requests: int) -> dict[int, pl.DataFrame]:
    """Requests r0, r1, … of two rows each, the second half of them of another version."""
    ids = [f"r{request}:{row}" for request in range(requests) for row in range(2)]
    half = len(ids) // 4 * 2
    return {
        v: numbered(pl.DataFrame({"prediction_id": some})) for v, some in ((2, ids[:half]), (1, ids[half:])) if some
    }


class Attempts:
    """An evaluator that fails on some requests, and gives the ids of the others."""

    def __init__(self, *bad: str) -> None:
        self.bad = set(bad)
        self.count = 0

    async def __call__(self, rows: Mapping[int, pl.DataFrame]) -> list[str]:
        self.count += 1
        ids = [id_.partition(":")[0] for one in rows.values() for id_ in one["prediction_id"]]
        if bad := self.bad & set(ids):
            raise PlugInFailed(f"not {min(bad)}")
        assert all(ids.count(id_) == 2 for id_ in ids), "requests stay whole"
        return ids[::2]


@pytest.mark.parametrize("bad", [("r0",), ("r99",), ("r50",), ("r3", "r4", "r70")])
async def test_requests_that_fail_alone_are_told_apart_and_the_others_come_in_their_order(bad):
    attempts = Attempts(*bad)

    done, failed = await sift(predictions(100), attempts)

    assert [id_ for lot in done for id_ in lot] == [f"r{n}" for n in range(100) if f"r{n}" not in bad]
    assert failed == {id_: f"not {id_}" for id_ in bad}
    assert attempts.count < 50


@pytest.mark.parametrize("bad", [("r0", "r7"), [f"r{n}" for n in range(8)]])
async def test_an_evaluator_that_fails_on_all_that_is_tried_first_has_nothing_set_aside(bad):
    attempts = Attempts(*bad)

    with pytest.raises(PlugInFailed):
        await sift(predictions(8), attempts)
    assert attempts.count == 2


async def test_a_single_request_that_fails_waits_for_others():
    with pytest.raises(PlugInFailed, match="not r0"):
        await sift(predictions(1), Attempts("r0"))


async def test_an_evaluator_that_fails_on_too_many_is_broken_itself():
    bad = [f"r{n}" for n in range(1, sifting.MOST + 2)]

    with pytest.raises(PlugInFailed):
        await sift(predictions(100), Attempts(*bad))
