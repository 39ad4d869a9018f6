"""What is kept of windows."""

from sqlmodel import select

from meguri_chassis.store import Database
from meguri_monitoring.app import MIGRATIONS
from meguri_monitoring.windows import store as window_store
from meguri_monitoring.windows.store import WindowRow


def test_windows_of_versions_that_served_for_a_short_while_are_forgotten_too(database_url, monkeypatch):
    """A model that learns anew each day: no version of it ever has many windows, but there are many versions."""
    monkeypatch.setattr(window_store, "KEPT", 20)
    database = Database(database_url, MIGRATIONS)
    database.migrate()
    for version in range(1, 11):
        with database.write() as session:
            for number in range(5):
                episode = "ep" if (version, number) == (1, 3) else None
                row = _window(version, number, episode)
                session.add(row)
                session.flush()
                window_store.mark_decided(session, row.id or 0)

    with database.read() as session:
        kept = [(row.version, row.number) for row in session.exec(select(WindowRow).order_by(WindowRow.id))]
    database.close()
    assert kept[0] == (1, 3)
    assert kept[1:] == [(version, number) for version in range(6, 11) for number in range(5)]


def _window(version: int, number: int, episode: str | None) -> WindowRow:
    return WindowRow(
        model="m",
        version=version,
        rollout=version,
        key=number,
        length=0,
        number=number,
        first=1,
        last=1,
        rows=1,
        parts=1,
        judged={},
        episode=episode,
    )
