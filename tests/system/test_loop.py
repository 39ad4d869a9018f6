"""Once round the loop, seen from outside."""

import json
import os
import socket
import subprocess
import sys

import pytest

from meguri.client import Meguri
from tests.conftest import PATIENCE, ROOT
from tests.system.conftest import Laptop, environment

pytestmark = pytest.mark.timeout(600)


def test_every_step_of_the_story_was_observed(laptop: Laptop):
    assert "NOT OBSERVED" not in laptop.story
    assert all(f"({step})" in laptop.story for step in range(1, 7))


def test_the_champion_is_the_version_that_learned_from_dimmed_images(meguri: Meguri):
    model = meguri.model("digits")

    assert [version["verdict"] for version in model["versions"]] == ["promoted", "rejected", "promoted"]
    assert model["champion"] == 3
    assert model["versions"][1]["judged"][1]["holds"] is False


def test_a_kill_in_the_middle_of_a_fit_left_exactly_one_version(meguri: Meguri):
    model = meguri.model("digits-slow")

    assert [version["version"] for version in model["versions"]] == [1]
    assert [run["status"] for run in model["runs"]] == ["trained"]


def test_a_prediction_leads_back_to_every_producer(meguri: Meguri, laptop: Laptop):
    story = json.loads((laptop.var / "story.json").read_text())
    why = meguri.why(story["predictions are made"]["prediction"])

    assert why["version"]["version"] == 1
    assert {arrival["producer"] for arrival in why["lineage"]["arrivals"]} == {"scanner-a", "scanner-b", "scanner-c"}
    assert why["prediction"]["producer"] in {"scanner-a", "scanner-b", "scanner-c"}


def test_the_receipt_of_an_arrival_names_the_versions_that_learned_from_it(meguri: Meguri):
    arrival = meguri.lineage("digits", 1)["arrivals"][0]

    used = meguri.receipt(arrival["event"])["used_in"]

    assert [use["verdict"] for use in used if use["model"] == "digits"] == ["promoted", "rejected", "promoted"]


def test_the_rollouts_say_who_was_champion_when_and_why(meguri: Meguri):
    rollouts = meguri.rollouts("digits")

    assert [(rollout["version"], rollout["previous"]) for rollout in rollouts] == [(3, 1), (1, None)]


@pytest.mark.parametrize(
    "command",
    [
        ["models"],
        ["models", "digits"],
        ["episodes"],
        ["status"],
        ["provision"],
    ],
)
def test_a_command_prints_for_people_and_as_json(laptop: Laptop, command: list[str]):
    as_text = _meguri(*command)
    as_json = _meguri(*command, "--json")

    assert as_text.returncode == as_json.returncode == 0, as_text.stderr + as_json.stderr
    assert as_text.stdout.strip()
    assert json.loads(as_json.stdout)


def test_a_command_says_in_one_line_what_is_wrong(laptop: Laptop):
    answer = _meguri("models", "nobody")

    assert answer.returncode == 1
    assert answer.stderr == "meguri: no model 'nobody'; known are: digits, digits-slow\n"


def test_a_taken_port_is_one_clear_line(tmp_path):
    env = environment(tmp_path / "var")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", int(env["MEGURI_REGISTRY_PORT"])))
        taken.listen()
        command = [sys.executable, "-m", "infra.local.run"]
        answer = subprocess.run(
            command, env=env, cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENCE
        )

    assert answer.returncode == 1
    assert answer.stderr == (
        f"make run: port {env['MEGURI_REGISTRY_PORT']} for registry is taken: stop what uses it, "
        "or choose another with MEGURI_REGISTRY_PORT\n"
    )


def _meguri(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "meguri", *arguments]
    return subprocess.run(
        command, env=os.environ, cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
