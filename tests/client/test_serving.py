"""Canary, shadow, A/B test and promotion as an operator types them, against a running registry."""

import pytest
from rich.console import Console

from meguri import show
from meguri_contracts.events import QualityMeasured, RolloutObserved
from tests.client.conftest import apply, meguri, train
from tests.conftest import until
from tests.registry.plans import arm, scored
from tests.services import name


@pytest.fixture
async def model(own, registry) -> str:
    """A model with version 1 as champion, beside two that were rejected."""
    model = name("m")
    await apply(registry, model)
    for run, accuracy in (("good", 0.9), ("bad", 0.5), ("worse", 0.4)):
        await train(own, registry, model, name(run), accuracy)
    return model


async def test_a_canary_is_begun_watched_and_ended(own, registry, model):
    begun = await meguri("canary", model, 2, "--steps", "0.1,0.5", "--requests", 20, "--max-latency", "any", "--json")
    (event,) = begun.data["events"]
    assert event["plan"]["canary"]["policy"] == {
        "steps": [0.1, 0.5],
        "requests": 20,
        "seconds": 0.0,
        "max_errors": 0.01,
        "max_latency": None,
        "max_quality_loss": 0.02,
        "min_requests": 50,
    }
    assert (event["reason"], event["actor"]) == ("asked for by hand: version 2 is canary, step 1 of 2, 10 %", "ada")
    plan = (await meguri("rollout", model, "--json")).data
    seen = (arm(1, "champion", 90), arm(2, "canary", 10))
    await own.say(RolloutObserved(model=model, rollout=plan["rollout"], replica="one", number=1, seconds=1, arms=seen))

    async def watched() -> str:
        shown = (await meguri("rollout", model)).out
        return shown if "next: canary: step 1 of 2 (10 %), 10 of 20 requests; then 50 %" in shown else ""

    table = [line.split() for line in (await until(watched)).splitlines()]
    assert ["1", "champion", "0.9", "90", "0", "1.5", "ms", "1.95", "ms", "0"] in table
    assert ["2", "canary", "0.1", "10", "0", "1.5", "ms", "1.95", "ms", "0"] in table
    out = Console(width=200)
    with out.capture() as capture:
        show.model(out, (await registry.get(f"/models/{model}")).json() | {"training": {"waits_for": "its end"}})
    assert f"version 2 is canary: `meguri rollout {model}`" in capture.get()
    assert "version 2 is canary, 0.1 of the requests" in (await meguri("registry", "at", "0s", model)).out
    assert (await meguri("rollback", model)).out == "said meguri.rollout-changed.v1\n"
    assert [one["version"] for one in (await meguri("rollout", model, "--json")).data["versions"]] == [1]


async def test_a_shadow_is_begun_watched_and_stopped(own, model):
    await meguri("shadow", model, 2, "--share", 0.5)
    plan = (await meguri("rollout", model, "--json")).data
    assert [(one["role"], one["share"]) for one in plan["versions"]] == [("champion", 1), ("shadow", 0.5)]
    seen = (arm(1, "champion", 90), arm(2, "shadow", 10, pairs=20, disagreed=5, difference=1))
    await own.say(RolloutObserved(model=model, rollout=plan["rollout"], replica="one", number=1, seconds=1, arms=seen))

    async def watched() -> bool:
        shown = (await meguri("rollout", model)).out
        return "version 2: 5 of 20 rows answered otherwise (25.00%), by 0.05 on average" in shown

    await until(watched)
    assert (await meguri("shadow", model, 2, "--stop")).code == 0
    assert "nothing: the champion answers everything" in (await meguri("rollout", model)).out


async def test_an_ab_test_is_begun_and_ends_by_labels(own, model):
    begun = await meguri("ab", model, 2, 3, "--weight", 0.2, "--min-labels", 50, "--json")
    trial = begun.data["events"][0]["plan"]["trial"]
    assert [(one["candidate"]["version"], one["weight"]) for one in trial["arms"]] == [(2, 0.2), (3, 0.2)]
    assert (trial["policy"]["min_labels"], trial["policy"]["alpha"]) == (50, 0.05)
    await own.say(QualityMeasured(model=model, arms=(scored(1, 60, 0.5), scored(2, 60, 0.5), scored(3, 60, 0.6))))

    async def measured() -> bool:
        return "version 3: score +0.1000 above the champion's, surely from -" in (await meguri("rollout", model)).out

    await until(measured)
    await own.say(QualityMeasured(model=model, arms=(scored(1, 200, 0.5), scored(2, 200, 0.5), scored(3, 200, 0.9))))

    async def ended() -> bool:
        return (await meguri("rollout", model, "--json")).data["champion"] == 3

    await until(ended)


async def test_what_cannot_be_is_one_line_and_exit_code_1(model):
    for words, reason in (
        (("canary", model, 1), "version 1 of model"),
        (("canary", model, 9), "has no version 9"),
        (("canary", model, 2, "--steps", "a,b"), "'a,b': numbers are needed"),
        (("ab", model, 2, 3, "--weight", 0.5), "that leaves the champion nothing"),
    ):
        refused = await meguri(*words)
        assert (refused.code, refused.error.count("\n"), reason in refused.error) == (1, 1, True), refused.error
