import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from meguri_chassis.profiles import profile_of
from meguri_contracts import events
from meguri_contracts.events import (
    Artifact,
    Deployed,
    DriftDetected,
    EpisodeResolved,
    Plan,
    RolloutChanged,
    Signature,
    Tensor,
)
from meguri_contracts.spec import Monitor
from meguri_monitoring.drift import FeatureVerdict
from meguri_monitoring.episodes import NAMED, Judged, State, decide, evolve, judge, resolve
from meguri_monitoring.predictions import Batch
from meguri_monitoring.windows import Window, add

RULE = Monitor(windows=2)
SERVING = State("digits", champion=1)


def moved(number, version=1, feature="pixel_3", producer="scanner-c") -> Judged:
    worst = FeatureVerdict(feature=feature, ks=0.4, p_value=1e-9, wasserstein=0.7, drifted=True)
    return Judged(version, span(number), True, (worst,), producer, 0.9, ("p1", "p2"))


def quiet(number, version=1) -> Judged:
    return Judged(version, span(number), judged=True)


def too_small(number, version=1) -> Judged:
    return Judged(version, span(number), judged=False)


def span(number) -> events.Window:
    return events.Window(first=10 * number, last=10 * number + 9, rows=300)


def rollout(version) -> RolloutChanged:
    file = Artifact(uri="file:///f", digest="0", size=1)
    tensor = Tensor(name="input", datatype="FP32", shape=(-1, 1))
    signature = Signature(features=("pixel_3",), input=tensor, outputs=(tensor,))
    champion = Deployed(version=version, run="r", onnx=file, profile=file, signature=signature)
    return RolloutChanged(model="digits", plan=Plan(champion=champion), reason="gate held", actor="gate")


def story(*steps, rule=RULE, state=SERVING):
    """Every event that is said when these windows and rollouts come one after the other, and what is known then."""
    said, windows = [], []
    for step in steps:
        if isinstance(step, RolloutChanged):
            state = evolve(state, step)
            answer = resolve(state, step)
        else:
            windows.append(step)
            answer = decide(state, windows, rule)
        for event in answer:
            state = evolve(state, event)
        said += answer
    return said, state


def kinds(said):
    return [event.kind() for event in said]


def test_an_episode_begins_only_after_two_windows_in_a_row():
    assert story(moved(1))[0] == []
    assert story(moved(1), quiet(2), moved(3))[0] == []
    assert kinds(story(moved(1), moved(2))[0]) == ["drift-detected"]


def test_an_episode_is_told_once_however_long_it_lasts():
    assert kinds(story(*(moved(i) for i in range(20)))[0]) == ["drift-detected"]


def test_an_episode_ends_only_after_two_quiet_windows_in_a_row():
    assert kinds(story(moved(1), moved(2), quiet(3), moved(4), quiet(5))[0]) == ["drift-detected"]
    said, state = story(moved(1), moved(2), quiet(3), quiet(4))

    assert kinds(said) == ["drift-detected", "episode-resolved"]
    assert said[1].episode == said[0].episode
    assert said[1].reason == "like the reference again for 2 windows in a row"
    assert state == SERVING


def test_the_next_episode_has_another_id():
    said, _ = story(moved(1), moved(2), quiet(3), quiet(4), moved(5), moved(6))

    assert kinds(said) == ["drift-detected", "episode-resolved", "drift-detected"]
    assert said[2].episode != said[0].episode


def test_the_same_windows_begin_the_same_episode():
    assert story(moved(1), moved(2)) == story(moved(1), moved(2))


def test_what_is_told_is_that_of_the_last_window():
    (said,), state = story(moved(1, feature="pixel_9", producer="scanner-a"), moved(2))

    assert isinstance(said, DriftDetected)
    assert (said.feature, said.producer, said.share, said.window) == ("pixel_3", "scanner-c", 0.9, span(2))
    assert (said.distance, said.ks, said.p_value) == (0.7, 0.4, 1e-9)
    assert (said.drifted, said.samples) == (("pixel_3",), ("p1", "p2"))
    assert state.episode
    assert (state.episode.feature, state.episode.producer) == ("pixel_3", "scanner-c")


def test_windows_without_a_verdict_change_nothing():
    assert kinds(story(moved(1), too_small(2), moved(3))[0]) == ["drift-detected"]
    assert kinds(story(moved(1), moved(2), too_small(3), too_small(4))[0]) == ["drift-detected"]
    assert decide(SERVING, [moved(1), moved(2), too_small(3)], RULE) == []
    assert decide(SERVING, [], RULE) == []


def test_windows_of_a_version_that_does_not_serve_say_nothing():
    assert story(moved(1, version=2), moved(2, version=2))[0] == []
    assert story(moved(1), moved(2), state=State("digits"))[0] == []
    assert decide(SERVING, [moved(1), moved(2), moved(3, version=2)], RULE) == []


def test_another_champion_ends_the_episode_of_the_old_one():
    said, state = story(moved(1), moved(2), rollout(2))

    assert kinds(said) == ["drift-detected", "episode-resolved"]
    assert (said[1].version, said[1].reason) == (1, "version 2 serves")
    assert state == State("digits", champion=2)


def test_the_same_champion_again_ends_nothing():
    assert kinds(story(moved(1), moved(2), rollout(1))[0]) == ["drift-detected"]
    assert story(rollout(2))[0] == []


def test_a_late_resolution_of_another_episode_ends_nothing():
    _, state = story(moved(1), moved(2))
    late = EpisodeResolved(model="digits", version=1, episode="an older one", reason="version 1 serves")

    assert evolve(state, late) == state


VERDICT = st.sampled_from(["moved", "quiet", "too small"])
STEPS = st.lists(st.one_of(st.tuples(VERDICT, st.integers(1, 3)), st.integers(1, 3)), max_size=60)


def as_steps(raw):
    make = {"moved": moved, "quiet": quiet, "too small": too_small}
    return [rollout(one) if isinstance(one, int) else make[one[0]](i, version=one[1]) for i, one in enumerate(raw)]


@settings(max_examples=200, deadline=None)
@given(raw=STEPS, needed=st.integers(1, 3))
def test_no_episode_begins_before_the_one_before_it_has_ended(raw, needed):
    said, state = story(*as_steps(raw), rule=Monitor(windows=needed))
    open_ = None
    for event in said:
        if isinstance(event, DriftDetected):
            assert open_ is None
            open_ = event
        else:
            assert open_ is not None
            assert (event.episode, event.version) == (open_.episode, open_.version)
            open_ = None
    assert (state.episode and state.episode.id) == (open_ and open_.episode)


@settings(max_examples=200, deadline=None)
@given(raw=STEPS, needed=st.integers(1, 3))
def test_deciding_and_evolving_equals_counting_runs(raw, needed):
    said, state = story(*as_steps(raw), rule=Monitor(windows=needed))

    champion, episode, expected = 1, None, []
    runs: dict[int, tuple[str, int]] = {}
    for one in raw:
        if isinstance(one, int):
            champion = one
            if episode not in (None, champion):
                episode = None
                expected.append("episode-resolved")
            continue
        verdict, version = one
        if verdict == "too small":
            continue
        before, length = runs.get(version, (verdict, 0))
        runs[version] = (verdict, length + 1 if before == verdict else 1)
        if version != champion:
            continue
        if runs[version][1] >= needed and verdict == "moved" and episode is None:
            episode = version
            expected.append("drift-detected")
        elif runs[version][1] >= needed and verdict == "quiet" and episode == version:
            episode = None
            expected.append("episode-resolved")

    assert kinds(said) == expected
    assert (state.episode and state.episode.version) == episode


NAMES = tuple(f"f{i}" for i in range(30))
REFERENCE = profile_of(NAMES, np.random.default_rng(0).normal(size=(600, 30)))


def window(shift: dict[str, float], rows=300) -> Window:
    """Rows of three producers in turn, each moved by its shift."""
    producers = tuple("abc"[i % 3] for i in range(rows))
    values = np.random.default_rng(1).normal(size=(rows, 30)) + np.array([[shift.get(one, 0.0)] for one in producers])
    ids = tuple(f"{one}-{i}" for i, one in enumerate(producers))
    batch = Batch("digits", 1, 5, NAMES, values, ids, producers, pl.DataFrame())
    (closed,), _ = add(Window(), batch, REFERENCE, rows)
    return closed


def test_a_window_is_judged_with_the_producer_that_moved_it():
    judged = judge(1, window({"b": 3.0}), REFERENCE, RULE)

    assert judged.moved
    assert judged.judged
    assert judged.producer == "b"
    assert judged.share > 0.7
    assert all(sample.startswith("b-") for sample in judged.samples)
    assert len(judged.drifted) == NAMED
    assert judged.window == events.Window(first=5, last=5, rows=300)


def test_a_quiet_window_names_nobody():
    judged = judge(1, window({}), REFERENCE, RULE)

    assert (judged.judged, judged.moved, judged.producer, judged.samples) == (True, False, "", ())


def test_a_window_too_small_is_not_judged():
    judged = judge(1, window({"b": 9.0}, rows=100), REFERENCE, RULE)

    assert (judged.judged, judged.moved) == (False, False)


@pytest.mark.parametrize("judged", [moved(1), quiet(2), too_small(3), judge(1, window({"b": 3.0}), REFERENCE, RULE)])
def test_a_judged_window_can_be_kept_as_json(judged):
    plain = TypeAdapter(Judged)

    assert plain.validate_json(plain.dump_json(judged)) == judged
