"""One order for all channels."""

import types

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfcompress.errors import InputError
from tfcompress.structured.groups import channel_groups
from tfcompress.structured.ranking import rank, score_groups
from tfcompress.structured.scores import SCORES

A, B = (
    types.SimpleNamespace(name=name, size=size, members=()) for name, size in (("a", 2), ("b", 4))
)
SCORES_OF = {"a": np.array([3.0, 1.0]), "b": np.array([10.0, 40.0, 20.0, 30.0])}


def order(ranking):
    return [
        (ranking.names[g], int(c)) for g, c in zip(ranking.groups, ranking.channels, strict=True)
    ]


def test_global_scores_are_divided_by_their_groups_mean():
    # 1.5, 0.5 and 0.4, 1.6, 0.8, 1.2
    expected = [("b", 0), ("a", 1), ("b", 2), ("b", 3), ("a", 0), ("b", 1)]
    ranking = rank([A, B], SCORES_OF)
    assert order(ranking) == expected and len(ranking) == 6
    np.testing.assert_allclose(ranking.keys, [0.4, 0.5, 0.8, 1.2, 1.5, 1.6])


def test_global_scores_as_they_are():
    expected = [("a", 1), ("a", 0), ("b", 0), ("b", 2), ("b", 3), ("b", 1)]
    assert order(rank([A, B], SCORES_OF, normalise=False)) == expected


def test_layer_takes_the_same_share_of_each_group():
    ranking = rank([A, B], SCORES_OF, scope="layer")
    assert order(ranking) == [("b", 0), ("a", 1), ("b", 2), ("b", 3), ("a", 0), ("b", 1)]
    kept = ranking.kept(3)
    np.testing.assert_array_equal(kept["a"], [0])
    np.testing.assert_array_equal(kept["b"], [1, 3])


def test_nothing_and_everything_can_go():
    ranking = rank([A, B], SCORES_OF)
    assert {name: len(kept) for name, kept in ranking.kept(0).items()} == {"a": 2, "b": 4}
    assert {name: len(kept) for name, kept in ranking.kept(6).items()} == {"a": 0, "b": 0}
    assert {name: len(kept) for name, kept in ranking.kept(5).items()} == {"a": 0, "b": 1}


def test_equal_channels_go_in_their_order():
    scores = {"a": np.zeros(2), "b": np.ones(4)}
    assert order(rank([A, B], scores)) == [("a", 0), ("a", 1), *(("b", c) for c in range(4))]


@given(st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=20), min_size=1, max_size=5))
def test_what_stays_in_a_group_is_its_best(rows):
    groups = [
        types.SimpleNamespace(name=str(n), size=len(r), members=()) for n, r in enumerate(rows)
    ]
    scores = {g.name: np.array(r) for g, r in zip(groups, rows, strict=True)}
    for scope in ("global", "layer"):
        ranking = rank(groups, scores, scope)
        assert (np.diff(ranking.keys) >= 0).all()
        removed = len(ranking) // 2
        kept = ranking.kept(removed)
        assert sum(map(len, kept.values())) == len(ranking) - removed
        for name, channels in kept.items():
            gone = np.delete(scores[name], channels)
            assert not gone.size or not channels.size or gone.max() <= scores[name][channels].min()
            if scope == "layer":
                assert abs(gone.size - len(scores[name]) / 2) <= 1


def test_bad_input():
    with pytest.raises(InputError, match="Unknown scope 'local'"):
        rank([A], SCORES_OF, "local")
    with pytest.raises(InputError, match="given for group 'b'"):
        rank([A, B], {"a": np.ones(2)})
    with pytest.raises(InputError, match=r"each of its 2 channels. Received: shape=\(4,\)"):
        rank([A], {"a": np.ones(4)})
    with pytest.raises(InputError, match="Scores of 'a' must not be NaN"):
        rank([A], {"a": np.array([1, np.nan])})


def test_weights_that_are_not_finite_are_named_for_every_score():
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(2, name="hidden"), keras.layers.Dense(1)]
    )
    model.get_layer("hidden").bias.assign([np.inf, 0])
    for name in ("magnitude", "random"):
        with pytest.raises(InputError, match="Weights of 'hidden' must be finite"):
            score_groups(channel_groups(model), SCORES.create(name))
