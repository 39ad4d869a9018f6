"""The stream of predictions is lost, or a table of them."""

import shutil

from meguri_contracts.topology import PREDICTIONS
from tests.conftest import until
from tests.monitoring.conftest import WINDOW, message, values


async def test_a_stream_that_was_lost_and_made_anew_is_told_until_it_goes_on_behind_what_was_recorded(monitoring):
    js = monitoring.wire.js
    last = await monitoring.predict(*(message(monitoring.model, values(WINDOW // 4, seed)) for seed in range(8)))
    await monitoring.windows(2)
    config = (await js.stream_info(PREDICTIONS)).config
    await js.delete_stream(PREDICTIONS)
    await js.add_stream(config)

    async def reasons() -> list[str]:
        return list((await monitoring.http.get("/health/ready")).json()["reasons"])

    assert "it was lost; `meguri restore-log`" in (await until(reasons, "a reason"))[0]
    # As `meguri restore-log` does.
    await js.purge_stream(PREDICTIONS, seq=last + 1)
    await monitoring.predict(*(message(monitoring.model, values(WINDOW, seed)) for seed in (1, 2)))
    await monitoring.windows(4)
    assert await reasons() == []
    assert monitoring.kept().height == 4 * WINDOW


async def test_a_table_that_is_deleted_stops_nothing(monitoring):
    await monitoring.predict(message(monitoring.model, values(WINDOW + 30, 1)))
    await monitoring.windows(1)
    shutil.rmtree(monitoring.folder / "data" / "_predictions" / monitoring.model)

    await monitoring.predict(*(message(monitoring.model, values(WINDOW, seed)) for seed in (1, 2)))
    await monitoring.windows(3)
