"""Questions that nobody should ask, and whose answer is no fault of the service."""

import polars as pl
import pytest

from meguri_contracts.events import DriftDetected
from meguri_monitoring.evaluators import api as evaluator_api
from tests.monitoring.conftest import WINDOW, message, values


@pytest.mark.parametrize("time", ["0001-01-01", "9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00%2B14:00"])
@pytest.mark.parametrize("question", ["quality?since", "quality?until", "shadows/1?since"])
async def test_any_time_can_be_asked_about(monitoring, question, time):
    await monitoring.predict(message(monitoring.model, values(WINDOW, 1)))
    await monitoring.windows(1)

    answer = await monitoring.http.get(f"/models/{monitoring.model}/{question}={time}")
    assert answer.status_code == 200


async def test_a_version_that_no_database_can_have_is_refused(monitoring):
    await monitoring.predict(*(message(monitoring.model, values(WINDOW, seed, 3.0)) for seed in (1, 2)))
    (detected,) = await monitoring.said(DriftDetected)

    for path in (f"/episodes/{detected.episode}/whatif?version={2**63}", f"/models/{monitoring.model}/shadows/{2**63}"):
        assert (await monitoring.http.get(path)).status_code == 422


def test_rows_of_evaluators_are_shown_without_numbers_that_json_does_not_have():
    rows = pl.DataFrame({"key": ["a", "b", "c"], "persons": [1.5, float("inf"), float("nan")]})

    assert [row["persons"] for row in evaluator_api._plain(rows)] == [1.5, None, None]
