"""What monitoring has in its tables: waited for, looked at, wiped."""

from typing import Any

import sqlalchemy
from sqlmodel import Session, SQLModel, select

from meguri_chassis.store import Position
from meguri_contracts.topology import LOG
from meguri_monitoring.store import PREDICTIONS as PREDICTED
from meguri_monitoring.windows.store import PlannedRow, WindowRow
from tests.monitoring.conftest import Monitoring


async def settled(monitoring: Monitoring, sequence: int) -> None:
    """Wait until the tables know of what stands at a sequence of the log."""
    answer = await monitoring.http.get("/log/digest", headers={"Meguri-After": str(sequence)})
    assert answer.status_code == 200


async def digest(monitoring: Monitoring) -> tuple[int, str]:
    """Position and digest, once the tables have all that the log has."""
    last = (await monitoring.wire.js.stream_info(LOG)).state.last_seq
    answer = await monitoring.http.get("/log/digest", headers={"Meguri-After": str(last)})
    return answer.json()["position"], answer.json()["digest"]


def wipe(url: str) -> None:
    """Empty every table, and keep their schema, as somebody would by hand."""
    engine = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    ours = [table for name, table in SQLModel.metadata.tables.items() if name.startswith(("monitoring_", "log_"))]
    with engine.begin() as connection:
        for table in ours:
            connection.execute(table.delete())
    engine.dispose()


def counted(database_url: str) -> dict[str, list[Any]]:
    """The verdicts on windows, what is planned, and up to which message it is, once all of that is counted."""
    engine = sqlalchemy.create_engine(database_url.replace("postgresql://", "postgresql+psycopg://"))
    with Session(engine) as session:
        # First: what is planned up to there is among the windows then.
        position = [row.sequence for row in session.exec(select(Position).where(Position.projection == PREDICTED))]
        windows = session.exec(select(WindowRow).order_by(WindowRow.version, WindowRow.rollout, WindowRow.number)).all()
        closed = [row for row in windows if row.number is not None]
        found = {
            "judged": [(row.version, row.judged) for row in closed],
            "planned": [(row.version, row.planner) for row in session.exec(select(PlannedRow))],
            "position": position if all(row.judged for row in closed) else [],
        }
    engine.dispose()
    return found
