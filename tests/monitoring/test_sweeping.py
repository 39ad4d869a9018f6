"""Windows whose tasks are gone are counted all the same."""

from meguri_contracts.events import RolloutChanged
from meguri_contracts.topology import WINDOWS
from meguri_monitoring.windows import sweeping
from meguri_monitoring.windows.counting import Counter
from meguri_monitoring.windows.planning import tasks_of
from meguri_monitoring.windows.store import WindowRow
from tests.conftest import until
from tests.monitoring.conftest import WINDOW, message, values


async def test_a_task_that_was_lost_is_told_again_while_the_service_runs(monitoring, monkeypatch):
    """As when a replica planned windows and died before it told of them, and the others go on."""
    monkeypatch.setattr(sweeping, "EVERY", 0.05)
    counted, lost = Counter.count, []

    async def lose(self, task):
        lost.append(task)

    monkeypatch.setattr(Counter, "count", lose)
    await monitoring.predict(*(message(monitoring.model, values(WINDOW, seed)) for seed in (1, 2)))
    await until(lambda: lost, "a task that is lost")
    monkeypatch.setattr(Counter, "count", counted)

    assert [one["number"] for one in await monitoring.windows(2)] == [0, 1]


async def test_a_reference_that_is_lost_keeps_nobody_else_waiting(monitoring, monkeypatch):
    """Once it is there again, its windows are judged without a restart."""
    monkeypatch.setattr(sweeping, "EVERY", 0.05)
    sent = await monitoring.predict(message(monitoring.model, values(WINDOW, 1)))
    await monitoring.windows(1)
    references = []
    count = Counter.count

    async def forgetful(self, task):
        self._references._held.clear()
        references.append(task)
        await count(self, task)

    monkeypatch.setattr(Counter, "count", forgetful)
    (rollout,) = await monitoring.wire.said(RolloutChanged, monitoring.model)
    digest = rollout.plan.champion.profile.digest
    file = monitoring.folder / "artifacts" / "sha256" / digest[:2] / digest
    kept = file.read_bytes()
    file.unlink()
    await monitoring.predict(message(monitoring.model, values(WINDOW, 2)))
    await until(lambda: len(references) >= 3, "tries")
    assert (await monitoring.http.get("/health/ready")).status_code == 200
    file.write_bytes(kept)

    assert (await monitoring.windows(2))[1]["window"]["first"] == sent + 1
    assert (await monitoring.wire.js.stream_info(WINDOWS)).state.messages < 50


def test_what_is_told_again_of_a_large_window_is_told_in_parts():
    row = WindowRow(
        id=7, model="m", version=1, rollout=1, key=0, length=0, number=0, first=1, last=9, rows=200_000, parts=10
    )

    tasks = list(tasks_of([(row, list(range(10)), True)]))
    assert [len(task.parts) for task in tasks] == [1] * 10 + [0]
    assert tasks[-1].windows == (7,)
