import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meguri_chassis.profiles import KEPT, NumericProfile, Profile, profile_of
from meguri_contracts.errors import Invalid, Malformed

NORMAL = np.random.default_rng(7).normal(3.0, 2.0, size=(5_000, 2))


def test_moments_are_those_of_the_rows():
    small, large = profile_of(["a", "b"], NORMAL[:300]), profile_of(["a", "b"], NORMAL)

    for profile, rows in ((small, NORMAL[:300]), (large, NORMAL)):
        for column, feature in zip(rows.T.astype(np.float32), profile.features.values(), strict=True):
            assert feature.n == len(column)
            assert feature.mean == pytest.approx(column.mean(dtype=float), rel=1e-9)
            assert feature.std == pytest.approx(column.std(dtype=float), rel=1e-9)
            assert (feature.min, feature.max) == (column.min(), column.max())


def test_missing_and_infinite_values_are_counted_and_nothing_else():
    profile = profile_of(["a"], [[1.0], [np.nan], [np.inf], [-np.inf], [3.0], [1e300]])

    assert (profile.features["a"].n, profile.features["a"].missing) == (2, 4)
    assert profile.features["a"].mean == 2.0
    assert profile.rows == 6


@given(st.lists(st.integers(0, 400), max_size=6))
def test_a_profile_does_not_depend_on_how_its_rows_were_cut(cuts):
    rows = NORMAL[:400]
    whole = profile_of(["a", "b"], rows)
    pieces = whole.like()
    for piece in np.split(rows, sorted(cuts)):
        pieces.update(piece)

    assert pieces.to_json() == whole.to_json()


@pytest.mark.parametrize("rows", [KEPT // 2, 5_000])
def test_merged_profiles_are_the_profile_of_both(rows):
    whole = profile_of(["a", "b"], NORMAL[:rows])
    parts = [whole.like(), whole.like()]
    parts[0].update(NORMAL[: rows // 3])
    parts[1].update(NORMAL[rows // 3 : rows])
    parts[0].merge(parts[1])

    for name, feature in parts[0].features.items():
        expected = whole.features[name]
        assert feature.n == expected.n
        assert feature.mean == pytest.approx(expected.mean)
        assert feature.m2 == pytest.approx(expected.m2)
        assert feature.counts.tolist() == expected.counts.tolist()
        assert (feature.min, feature.max) == (expected.min, expected.max)


def test_up_to_the_rows_kept_nothing_is_lost():
    feature = profile_of(["a", "b"], NORMAL[:KEPT]).features["a"]
    values, weights = feature.weighted

    assert feature.is_exact
    assert values.tolist() == np.sort(NORMAL[:KEPT, 0].astype(np.float32)).tolist()
    assert set(weights) == {1.0}


def test_one_row_more_than_are_kept_folds_them():
    feature = profile_of(["a"], np.arange(KEPT + 1)[:, None]).features["a"]

    assert not feature.is_exact
    assert (feature.n, feature.min, feature.max) == (KEPT + 1, 0, KEPT)


@pytest.mark.parametrize("rows", [10, 5_000])
def test_what_was_asked_before_does_not_hide_what_comes_later(rows):
    feature = NumericProfile()
    for part in (NORMAL[:5, 0], NORMAL[5:rows, 0]):
        feature.update(part)
        assert feature.mean == pytest.approx(NORMAL[: feature.n, 0].mean(), rel=1e-5)
        assert feature.weighted[1].sum() == feature.n


def test_beyond_the_rows_kept_ranks_stay_within_the_stated_error():
    rows = np.random.default_rng(1).normal(size=(100_000, 1))
    feature = profile_of(["a"], rows).features["a"]
    values, weights = feature.weighted
    true_rank = np.searchsorted(np.sort(rows[:, 0]), values, "right") / len(rows)

    assert not feature.is_exact
    assert len(values) < 5_000
    assert weights.sum() == len(rows)
    assert np.abs(np.cumsum(weights) / len(rows) - true_rank).max() < 2 * feature.rank_error


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_rows_keep_their_weight_when_sketches_are_merged(parts):
    rows = np.random.default_rng(2).normal(size=(parts * 16_500, 1))
    together = profile_of(["a"], rows).like()
    for part in np.split(rows, parts):
        one = together.like()
        one.update(part)
        together.merge(one)
    feature = together.features["a"]
    values, weights = feature.weighted
    true_rank = np.searchsorted(np.sort(rows[:, 0]), values, "right") / len(rows)

    assert weights.sum() == feature.n == len(rows)
    assert np.abs(np.cumsum(weights) / len(rows) - true_rank).max() < 2 * feature.rank_error


def test_a_mass_point_is_a_bin_of_its_own():
    rows = np.concatenate([np.zeros(500), np.linspace(1, 2, 500)])[:, None]
    reference = profile_of(["a"], rows)
    live = reference.like()
    live.update([[0.0], [0.0], [1e-9], [-5.0]])
    zero = int(np.flatnonzero(reference.features["a"].edges == 0.0)[0])

    assert reference.features["a"].counts[2 * zero + 1] == 500
    assert live.features["a"].counts[:4].tolist() == [1, 2, 1, 0]


@pytest.mark.parametrize("rows", [0, 1, 300, 5_000])
def test_a_profile_read_back_is_the_same_and_goes_on(rows):
    profile = profile_of(["a", "b"], NORMAL[:rows])
    back = Profile.from_json(profile.to_json())
    small = Profile.from_bytes(profile.to_bytes())
    for copy in (back, small):
        assert copy.to_json() == profile.to_json()
        copy.update(NORMAL[:10])
        assert copy.rows == rows + 10


def test_its_json_is_plain_and_keeps_the_order_of_the_features():
    data = profile_of(["b", "a"], NORMAL).to_json()

    assert list(json.loads(data)["features"]) == ["b", "a"]
    assert list(Profile.from_json(data).features) == ["b", "a"]


@pytest.mark.parametrize("rows", [10, 5_000])
def test_a_copy_goes_its_own_way(rows):
    profile = profile_of(["a", "b"], NORMAL[:rows])
    before, copy = profile.to_json(), profile.copy()
    copy.update(NORMAL[: KEPT + 1])

    assert profile.to_json() == before
    assert copy.rows == rows + KEPT + 1


def test_singles_and_doubles_of_the_same_rows_have_the_same_profile():
    assert profile_of(["a", "b"], NORMAL[:500]).to_json() == profile_of(["a", "b"], NORMAL[:500].astype("f4")).to_json()


def test_profiles_that_do_not_belong_together_are_not_merged():
    with pytest.raises(Invalid, match="'b' is only in one"):
        profile_of(["a", "b"], NORMAL).merge(profile_of(["a", "c"], NORMAL))
    with pytest.raises(Invalid, match="order"):
        profile_of(["a", "b"], NORMAL).merge(profile_of(["b", "a"], NORMAL))
    with pytest.raises(Invalid, match="edges"):
        NumericProfile([0.0]).merge(NumericProfile([1.0]))


def test_rows_of_another_shape_are_refused():
    with pytest.raises(Invalid, match=r"\(5000, 2\) do not fit a profile of 3"):
        profile_of(["a", "b", "c"], NORMAL)
    with pytest.raises(Invalid, match="twice"):
        profile_of(["a", "a"], NORMAL)


def test_a_reference_of_the_first_release_is_still_read():
    kept = Path(__file__).parent / "profiles/of_the_first_release.json"
    profile = Profile.from_json(kept.read_bytes())
    feature = profile.features["x"]
    live = profile.like()
    live.update([[float(i % 7)] for i in range(70)])

    assert (profile.categories, profile.outputs, profile.rows) == ({}, {}, 1_500)
    assert feature.weighted[1].sum() == 1_500
    assert feature.few is None
    assert live.features["x"].counts[1:14:2].tolist() == [10] * 7


@pytest.mark.parametrize(("distinct", "few"), [(5, dict.fromkeys([0.0, 1.0, 2.0, 3.0, 4.0], 600)), (6, None)])
def test_values_of_a_few_are_counted_one_by_one(distinct, few):
    rows = np.arange(3_000)[:, None] % distinct
    whole = profile_of(["a"], rows)
    parts = [whole.like(), whole.like()]
    for part, some in zip(parts, (rows[:1_700], rows[1_700:]), strict=True):
        part.update(some)
    parts[0].merge(parts[1])

    assert [one.features["a"].few for one in (whole, parts[0], Profile.from_json(whole.to_json()))] == [few] * 3


@given(st.lists(st.integers(0, 4_000), max_size=5), st.integers(0, 4_000))
def test_what_is_exact_of_many_rows_does_not_depend_on_how_they_were_cut_either(cuts, missing):
    rows = NORMAL[:4_000].copy()
    rows[:missing:3, 0] = np.nan
    whole, pieces = profile_of(["a", "b"], rows).like(), profile_of(["a", "b"], rows).like()
    whole.update(rows)
    for piece in np.split(rows, sorted(cuts)):
        pieces.update(piece)

    for one, other in zip(whole.features.values(), pieces.features.values(), strict=True):
        assert (other.moments, other.missing, other.min, other.max) == (one.moments, one.missing, one.min, one.max)
        assert other.counts.tolist() == one.counts.tolist()


@pytest.mark.parametrize("data", [b"", b"no", b"[]", b'{"features":{"a":{}}}', b'{"features":{"a":3}}'])
def test_what_is_no_profile_is_malformed(data):
    with pytest.raises(Malformed, match="not a profile"):
        Profile.from_json(data)
    with pytest.raises(Malformed, match="not a profile"):
        Profile.from_bytes(data)


def test_a_damaged_sketch_is_malformed():
    data = profile_of(["a", "b"], NORMAL).to_dict()
    data["features"]["a"]["folded"]["sketch"] = "AAAA"

    with pytest.raises(Malformed, match="not a profile"):
        Profile.from_dict(data)
