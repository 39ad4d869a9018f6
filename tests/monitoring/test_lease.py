"""One replica does what only one should do at a time."""

import pytest

from meguri_chassis.store import Database
from meguri_monitoring.app import MIGRATIONS
from meguri_monitoring.windows import store as window_store
from meguri_monitoring.windows.store import LEASE


@pytest.fixture
def lease(database_url, monkeypatch):
    """Have a replica whose clock shows so many seconds ask for the lease; gives for how many seconds it is not its own."""
    database = Database(database_url, MIGRATIONS)
    database.migrate()

    def ask(replica: str, clock: float) -> float:
        monkeypatch.setattr(window_store.time, "time", lambda: clock)
        with database.write() as session:
            return window_store.take_lease(session, "recording", replica)

    yield ask
    database.close()


def test_a_lease_is_another_replicas_until_it_ends(lease):
    assert lease("one", 1000) == 0
    assert lease("other", 1001) == LEASE - 1
    assert lease("one", 1002) == 0
    assert lease("other", 1003 + LEASE) == 0
    assert lease("one", 1003 + LEASE) == LEASE


def test_a_lease_by_a_clock_that_was_ahead_is_taken_over(lease):
    assert lease("one", 1000 + 3600) == 0
    assert lease("other", 1000) == 0
