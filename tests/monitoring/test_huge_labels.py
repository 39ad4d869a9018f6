"""Labels of a regression that are too large to be true."""

from meguri_contracts.events import LabelsArrived
from tests.conftest import until
from tests.monitoring.conftest import message, monitoring_in, values
from tests.services import name


async def test_a_label_without_measure_leaves_the_others_to_be_counted(broker, database_url, tmp_path):
    async with monitoring_in(tmp_path, broker, database_url, tmp_path / "artifacts", name("m")) as monitoring:
        await monitoring.watch()
        ids = [name("p") for _ in range(4)]
        answer = {"prediction": [1.0, 2.0, float("nan"), 4.0]}
        await monitoring.predict(message(monitoring.model, values(4, 1), ids=ids, role="champion", answer=answer))
        labels = [
            {"prediction_id": id_, "label": text} for id_, text in zip(ids, (1.5, 1e300, 3.0, "inf"), strict=True)
        ]
        await monitoring.wire.say(LabelsArrived.model_validate({"model": monitoring.model, "labels": labels}))

        async def counted():
            found = await monitoring.http.get(f"/models/{monitoring.model}/quality?since=2026-01-01")
            if found.status_code == 404:
                return None
            assert found.status_code == 200, found.text
            (version,) = found.json()["versions"]
            return version if version["labels"] else None

        version = await until(counted, "labels")
        assert (version["labels"], version["metrics"]["mae"]) == (1, 0.5)
