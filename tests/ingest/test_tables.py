import os
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from deltalake import DeltaTable

from meguri_contracts.errors import NotFound
from meguri_contracts.events import Contribution
from meguri_ingest.digests import chained, content_digest
from meguri_ingest.tables import Batch, DatasetTable, LostRace, SchemaChanged, StorageTrouble, quarantine, read
from tests.conftest import PATIENCE

NOW = datetime(2025, 1, 31, 12, 0, 0, 7, tzinfo=UTC)


def batch(event: str, *values: float | None, quarantined: int = 0) -> Batch:
    frame = pl.DataFrame({"a": values, "s": [event] * len(values)}, schema={"a": pl.Float64, "s": pl.String})
    return Batch(event=event, producer="sensor-1", good=frame, quarantined=quarantined)


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return str(tmp_path / "datasets" / "things")


def test_all_that_waits_becomes_one_version_with_its_origins(uri):
    first = DatasetTable(uri).commit("things", [batch("e1", 1, None), batch("e2", 3, quarantined=4)], NOW)
    second = DatasetTable(uri).commit("things", [batch("e3", 4)], NOW)

    assert first.events == (
        Contribution(event="e1", producer="sensor-1", rows=2),
        Contribution(event="e2", producer="sensor-1", rows=1, quarantined=4),
    )
    assert (first.rows, first.total_rows, second.rows, second.total_rows) == (3, 3, 1, 4)
    assert second.version == first.version + 1
    rows = read(uri, first.version)
    assert rows.rows() == [
        (1.0, "e1", "e1", "sensor-1", NOW),
        (None, "e1", "e1", "sensor-1", NOW),
        (3.0, "e2", "e2", "sensor-1", NOW),
    ]
    assert rows.schema["_arrived"] == pl.Datetime("us", "UTC")
    assert read(uri, second.version).height == 4


def test_the_digest_can_be_computed_again_from_the_stored_rows(uri):
    said = [DatasetTable(uri).commit("things", [batch(f"e{i}", i, i + 0.5)], NOW) for i in range(3)]

    end, rows = "", read(uri, said[-1].version)
    for event in said:
        own = rows.filter(pl.col("_event").is_in([c.event for c in event.events])).select("a", "s")
        end = chained(end, content_digest(own))
        assert event.digest == end


def test_the_same_rows_have_the_same_digest_whenever_they_arrive(tmp_path):
    later = datetime(2026, 1, 1, tzinfo=UTC)
    one = DatasetTable(str(tmp_path / "one")).commit("things", [batch("e1", 1)], NOW)
    other = DatasetTable(str(tmp_path / "other")).commit("things", [batch("e1", 1)], later)

    assert one.digest == other.digest


def test_what_a_crash_left_unsaid_is_found_again_word_for_word(uri):
    assert DatasetTable(uri).said_since(None) == []
    published = DatasetTable(uri).commit("things", [batch("e1", 1)], NOW)
    unsaid = [DatasetTable(uri).commit("things", [batch(f"e{i}", i)], NOW) for i in (2, 3)]

    table = DatasetTable(uri)

    assert table.said_since(published.version) == unsaid
    assert table.said_since(None) == [published, *unsaid]
    assert table.said_since(unsaid[-1].version) == []


def test_of_two_writers_that_saw_the_same_version_one_wins(uri):
    DatasetTable(uri).commit("things", [batch("e0", 0)], NOW)
    one, other = DatasetTable(uri), DatasetTable(uri)

    won = one.commit("things", [batch("e1", 1)], NOW)
    with pytest.raises(LostRace, match="open it again"):
        other.commit("things", [batch("e1", 1)], NOW)

    assert DatasetTable(uri).said_since(0)[-1] == won
    assert read(uri, won.version)["_event"].to_list().count("e1") == 1


@pytest.mark.parametrize("exists", [False, True])
def test_of_many_writers_at_once_one_wins_each_round(uri, exists):
    if exists:
        DatasetTable(uri).commit("things", [batch("e0", 0)], NOW)
    tables = [DatasetTable(uri) for _ in range(4)]
    outcomes: list[object] = []

    def write(table: DatasetTable) -> None:
        try:
            outcomes.append(table.commit("things", [batch("e1", 1)], NOW))
        except LostRace as lost:
            outcomes.append(lost)

    threads = [threading.Thread(target=write, args=(table,)) for table in tables]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sum(isinstance(outcome, LostRace) for outcome in outcomes) == 3
    said = DatasetTable(uri).said_since(None)
    assert [c.event for event in said for c in event.events] == (["e0", "e1"] if exists else ["e1"])


def test_another_look_does_not_make_an_older_one_see_more(uri):
    DatasetTable(uri).commit("things", [batch("e0", 0)], NOW)
    early = DatasetTable(uri)
    DatasetTable(uri).commit("things", [batch("e1", 1)], NOW)

    assert [c.event for event in early.said_since(None) for c in event.events] == ["e0"]
    with pytest.raises(LostRace):
        early.commit("things", [batch("e1", 1)], NOW)


def test_compaction_in_between_says_nothing_and_breaks_nothing(uri):
    said = [DatasetTable(uri).commit("things", [batch(f"e{i}", i)], NOW) for i in range(3)]
    seen_before = DatasetTable(uri)
    DeltaTable(uri).optimize.compact()

    with pytest.raises(LostRace):
        seen_before.commit("things", [batch("e3", 3)], NOW)
    after = DatasetTable(uri).commit("things", [batch("e3", 3)], NOW)

    assert after.version == said[-1].version + 2
    assert after.total_rows == 4
    assert DatasetTable(uri).said_since(said[0].version) == [*said[1:], after]
    assert read(uri, said[-1].version).height == 3


def test_the_thread_does_not_break_at_checkpoints(uri):
    said = [DatasetTable(uri).commit("things", [batch(f"e{i}", i)], NOW) for i in range(45)]

    assert list(Path(uri, "_delta_log").glob("*.checkpoint.parquet"))
    assert DatasetTable(uri).said_since(None) == said
    assert said[-1].total_rows == 45


def test_an_arrival_without_a_good_row_still_has_its_version(uri):
    event = DatasetTable(uri).commit("things", [batch("e1", quarantined=5)], NOW)

    assert (event.rows, event.total_rows, event.events[0].quarantined) == (0, 0, 5)
    assert DatasetTable(uri).said_since(None) == [event]
    assert read(uri, event.version).is_empty()


@pytest.mark.parametrize(
    ("good", "says"),
    [
        (pl.DataFrame({"a": [1], "s": ["x"]}), "column 'a' is double in the table and long in event e2"),
        (pl.DataFrame({"a": [0.5]}), "column 's' is string in the table and not there in event e2"),
        (pl.DataFrame({"a": [0.5], "s": ["x"], "z": [1]}), "column 'z' is not there in the table and long in event e2"),
    ],
)
def test_rows_with_other_columns_are_refused_before_anything_is_written(uri, good, says):
    before = DatasetTable(uri).commit("things", [batch("e1", 1)], NOW)

    with pytest.raises(SchemaChanged, match=says):
        DatasetTable(uri).commit("things", [batch("e0", 1), Batch("e2", "p", good)], NOW)

    assert DeltaTable(uri).version() == before.version


def test_columns_in_another_order_are_the_same_columns(uri):
    DatasetTable(uri).commit("things", [batch("e1", 1)], NOW)
    turned = DatasetTable(uri).commit("things", [Batch("e2", "p", batch("e2", 2).good.select("s", "a"))], NOW)

    assert read(uri, turned.version).filter(pl.col("_event") == "e2").select("a", "s").rows() == [(2.0, "e2")]


def test_rows_are_quarantined_once_however_often_their_event_comes(uri):
    rows = pl.DataFrame({"index": [3, 5], "row": ['{"a":1}', "{}"], "reason": ["too much", "too little"]})

    for event in ("e1", "e2", "e1"):
        quarantine(uri, rows, event, "sensor-1", NOW)

    stored = read(uri, DeltaTable(uri).version())
    assert stored.columns == ["row", "reason", "_event", "_producer", "_arrived"]
    assert sorted(stored["_event"]) == ["e1", "e1", "e2", "e2"]


def test_what_is_not_there_is_not_found(uri):
    with pytest.raises(NotFound, match="no table"):
        read(uri, 0)
    version = DatasetTable(uri).commit("things", [batch("e1", 1)], NOW).version
    for absent in (-1, version + 1):
        with pytest.raises(NotFound, match=f"no version {absent}, the last is {version}"):
            read(uri, absent)
    for file in Path(uri).glob("*.parquet"):
        file.unlink()
    with pytest.raises(NotFound, match="removed"):
        read(uri, version)


def test_a_table_that_cannot_be_read_is_trouble_and_not_an_empty_one(uri):
    log = Path(uri, "_delta_log")
    log.mkdir(parents=True)
    (log / f"{0:020}.json").write_text("{nonsense")

    with pytest.raises(StorageTrouble, match="things"):
        DatasetTable(uri)


WRITER = """
import sys
from datetime import UTC, datetime
import polars as pl
from meguri_ingest.tables import Batch, DatasetTable
for number in range(int(sys.argv[2]), 10_000):
    frame = pl.DataFrame({"a": [float(number)] * 500, "s": ["x"] * 500})
    said = DatasetTable(sys.argv[1]).commit("things", [Batch(f"e{number}", "p", frame)], datetime.now(UTC))
    print(said.model_dump_json(), flush=True)
"""


def test_a_writer_killed_at_any_moment_leaves_a_table_that_tells_all_it_holds(uri):
    acknowledged: list[str] = []
    for killed_after in (1, 4, 7):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, uri, str(100 * killed_after)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        for _ in range(killed_after):
            acknowledged.append(writer.stdout.readline().strip())
        os.kill(writer.pid, signal.SIGKILL)
        acknowledged += [line.strip() for line in writer.stdout if line.endswith("}\n")]
        writer.wait()
        writer.stdout.close()

    said = DatasetTable(uri).said_since(None)
    assert set(acknowledged) <= {event.model_dump_json() for event in said}
    assert [event.version for event in said] == list(range(1, len(said) + 1))
    assert [event.total_rows for event in said] == [500 * (i + 1) for i in range(len(said))]
    rows = read(uri, said[-1].version)
    assert sorted(rows["_event"].unique()) == sorted(c.event for event in said for c in event.events)
    assert rows.height == said[-1].total_rows
    assert DatasetTable(uri).commit("things", [batch("after", 1)], NOW).total_rows == rows.height + 1


FULL = """
import resource, signal, sys
from datetime import UTC, datetime
import polars as pl
from meguri_ingest.tables import Batch, DatasetTable, StorageTrouble
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
table = DatasetTable(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
frame = pl.DataFrame({"a": [i / 7 for i in range(5000)], "s": ["x"] * 5000})
try:
    table.commit("things", [Batch("e2", "p", frame)], datetime.now(UTC))
except StorageTrouble as trouble:
    print(trouble)
"""


def test_a_disk_that_takes_no_more_is_temporary_trouble_and_the_table_stays_as_it_was(uri):
    before = DatasetTable(uri).commit("things", [batch("e1", 1)], NOW)

    command = [sys.executable, "-B", "-c", FULL, uri]
    writer = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)

    assert "File too large" in writer.stdout
    assert DatasetTable(uri).said_since(None) == [before]
    assert read(uri, before.version).height == 1


def test_of_two_that_make_a_table_at_once_one_does_and_its_columns_stand(tmp_path):
    for turn in range(30):
        uri, ready, outcomes = f"{tmp_path}/{turn}", threading.Barrier(2), []

        def begin(event: str, uri: str = uri, ready: threading.Barrier = ready, outcomes: list = outcomes) -> None:
            look = DatasetTable(uri)
            ready.wait()
            try:
                outcomes.append(look.commit("things", [batch(event, 1)], NOW))
            except LostRace as lost:
                outcomes.append(lost)

        both = [threading.Thread(target=begin, args=(event,)) for event in ("e1", "e2")]
        for one in both:
            one.start()
        for one in both:
            one.join()

        said = [outcome for outcome in outcomes if not isinstance(outcome, LostRace)]
        assert [event.version for event in said] == [1], "the table is version 0, its first rows are version 1"
        assert read(uri, 1).height == 1
