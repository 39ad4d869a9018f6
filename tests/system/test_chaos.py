"""Everything is killed, in the short form of `make chaos`; and what the long form rests on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.system.chaos import havoc
from tests.system.chaos.checks import OF_THE_LOG, of_arrivals
from tests.system.chaos.publishers import Arrival, Ledger
from tests.system.chaos.seen import Seen

SERVICES = ["ingest", "ingest-2", "training", "registry"]


@pytest.mark.timeout(600)
def test_whatever_is_killed_every_accepted_event_has_its_effect_exactly_once(tmp_path: Path):
    out = tmp_path / "chaos.json"
    command = [sys.executable, "-m", "tests.system.chaos", "--seconds", "10", "--rate", "60", "--quick"]

    done = subprocess.run([*command, "--json", str(out)], cwd=ROOT, capture_output=True, text=True, check=False)

    assert out.exists(), done.stderr
    red = [finding for finding in json.loads(out.read_text())["findings"] if not finding["holds"]]
    assert not red, done.stdout
    assert done.returncode == 0


def test_one_seed_gives_the_same_blows_again():
    assert havoc.plan("3", 20, SERVICES) == havoc.plan("3", 20, SERVICES)
    assert havoc.plan("3", 20, SERVICES) != havoc.plan("4", 20, SERVICES)


def test_each_process_is_killed_before_one_is_killed_twice():
    blows = [blow for blow in havoc.plan("1", 6, SERVICES) if blow.what == havoc.KILL and blow.victims != ("nats",)]

    assert {blow.victims[0] for blow in blows} == {*SERVICES, havoc.FIT}


def test_an_accepted_event_without_effect_is_found(tmp_path: Path):
    nothing, ledger = Seen([], [], [], tmp_path), Ledger()
    ledger.accepted([Arrival("7", "someone", "fruit", (1, 2, 3), b"")])

    lost = next(finding for finding in of_arrivals(nothing, ledger) if finding.check == "accepted and lost")

    assert not lost.holds
    assert "7" in lost.found


def test_a_log_without_anything_in_it_has_nothing_to_complain_of(tmp_path: Path):
    findings = [finding for check in OF_THE_LOG for finding in check(Seen([], [], [], tmp_path))]

    assert [finding.check for finding in findings if not finding.holds] == []
