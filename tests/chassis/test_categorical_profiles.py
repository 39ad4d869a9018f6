import json
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meguri_chassis.profiles import DISTINCT, LONGEST, CategoricalProfile, Profile, profile_of
from meguri_contracts.errors import Invalid

WORDS = [*"aabbbbcdd", None, "", "e"] * 30


def read(profile: CategoricalProfile) -> str:
    return json.dumps(profile.to_dict())


def test_every_category_is_counted_and_what_is_missing_apart():
    profile = CategoricalProfile.of(WORDS)

    assert profile.known == ("a", "b", "c", "d", "e")
    assert profile.table() == {"a": 60, "b": 120, "c": 30, "d": 60, "e": 30}
    assert (profile.n, profile.missing, profile.rows, profile.strangers) == (300, 60, 360, 0)


def test_categories_of_live_rows_that_the_reference_does_not_have_are_strangers():
    live = CategoricalProfile.of(WORDS).like()
    live.update(["a", "z", "z", "y", None])

    assert (live.strangers, live.others, live.counts.tolist()) == (3, {"y": 1, "z": 2}, [1, 0, 0, 0, 0])
    assert live.table() == {"a": 1, "y": 1, "z": 2}


@given(
    st.lists(st.sampled_from(["a", "b", "new", "newer", "", None]), max_size=60),
    st.lists(st.integers(0, 60), max_size=5),
)
def test_merged_parts_are_the_whole_to_the_byte(values, cuts):
    whole = CategoricalProfile.of(WORDS).like()
    whole.update(values)
    together = whole.like()
    for start, end in pairwise([0, *sorted(cuts), len(values)]):
        part = whole.like()
        part.update(values[start:end])
        together.merge(part)

    assert read(together) == read(whole)


def test_of_very_many_categories_the_frequent_ones_are_kept():
    random = np.random.default_rng(1)
    words = [f"w{number}" for number in random.zipf(1.3, size=60_000)]
    profile = CategoricalProfile().like()
    for part in (words[:20_000], words[20_000:]):
        other = profile.like()
        other.update(part)
        profile.merge(other)
    true = Counter(words)

    assert not profile.is_exact
    assert (profile.n, profile.strangers) == (60_000, 60_000)
    assert sum(profile.table().values()) == 60_000
    for word, count in true.most_common(10):
        assert count - 0.0035 * 60_000 <= profile.others[word] <= count
    assert len(profile.to_dict()["sketch"]) < 40_000


def test_a_reference_freezes_its_most_frequent_categories():
    profile = CategoricalProfile.of([*(f"c{i:04}" for i in range(DISTINCT + 200)), "c1100", "c1100"])

    assert len(profile.known) == DISTINCT
    assert profile.table()["c1100"] == 3
    assert profile.strangers == 200


@pytest.mark.parametrize("strangers", [0, 5, 3 * DISTINCT])
def test_a_profile_read_back_is_the_same_and_goes_on(strangers):
    profile = CategoricalProfile.of(WORDS).like()
    profile.update([*WORDS, *(f"s{i}" for i in range(strangers))])
    back = CategoricalProfile.from_dict(json.loads(read(profile)))
    copy = profile.copy()
    for one in (back, copy):
        if profile.is_exact:
            assert read(one) == read(profile)
        assert one.table() == profile.table()
        one.update(["a", "new"])
        assert one.rows == profile.rows + 2


def test_a_category_is_not_kept_longer_than_needed():
    profile = CategoricalProfile.of(["x" * 5_000] * 3)

    assert profile.known == ("x" * LONGEST,)
    assert profile.counts.tolist() == [3]


def test_profiles_that_know_other_categories_are_not_merged():
    with pytest.raises(Invalid, match="other categories"):
        CategoricalProfile.of("ab").like().merge(CategoricalProfile.of("abc").like())


def test_a_profile_has_numbers_categories_and_answers():
    rows = np.random.default_rng(0).normal(size=(50, 1))
    profile = profile_of(["x"], rows, {"plan": ["a"] * 50}, {"label": ["1"] * 20, "probability": rows[:20, 0]})
    back = Profile.from_bytes(profile.to_bytes())

    assert back.to_json() == profile.to_json()
    assert list(back.inputs) == ["x", "plan"]
    assert list(back.outputs) == ["label", "probability"]
    assert back.rows == 50
    live = profile.like()
    live.merge(profile)
    live.merge(profile)
    assert (live.rows, live.categories["plan"].n, live.outputs["probability"].n) == (100, 100, 40)
    with pytest.raises(Invalid, match="'plan' is only in one"):
        live.merge(profile_of(["x"], rows))
