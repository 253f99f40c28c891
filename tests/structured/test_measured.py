"""Widths that are chosen by the loss of the model that is left."""

import types

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tfcompress.structured.measured import loss_without, rank_measured
from tfcompress.structured.selection import Limit

L = keras.layers
A, B = (types.SimpleNamespace(name=name, size=10) for name in "ab")
SCORES_OF = {"a": np.arange(10) + 1.0, "b": np.arange(10)[::-1] + 1.0}


def cost(widths):
    return widths[..., 0] * 1.0 + widths[..., 1]


def order(ranking):
    return [
        ranking.names[g] + str(c) for g, c in zip(ranking.groups, ranking.channels, strict=True)
    ]


def test_the_group_that_the_loss_can_spare_loses_its_lowest_channels():
    seen = []

    def measure(kept):
        seen.append({name: len(channels) for name, channels in kept.items()})
        return len(kept["a"]) * 1.0 - len(kept["b"])  # better without `a`

    limits = {"a": Limit(least=8), "b": Limit(round_to=2)}
    ranking = rank_measured([A, B], SCORES_OF, cost, limits, measure, 0.75)
    # A step saves one channel of 20, two of `b`; when `a` is held, `b` has to give the rest.
    assert order(ranking)[:5] == ["a0", "a1", "b9", "b8", "b7"] and len(ranking) == 20
    assert seen[:2] == [{"a": 9, "b": 10}, {"a": 10, "b": 8}]
    assert seen[-1] == {"a": 8, "b": 6}
    assert order(ranking)[6:10] == ["a2", "a3", "a4", "b5"], "the rest, lowest scores first"


def test_what_limits_hold_ends_the_search():
    held = {"a": Limit(least=10), "b": Limit(least=9)}
    ranking = rank_measured([A, B], SCORES_OF, cost, held, lambda kept: 0.0, 0.5)
    assert order(ranking)[0] == "b9" and len(ranking) == 20


def test_the_loss_is_that_of_new_statistics_and_of_the_channels_kept():
    x = np.random.default_rng(0).normal(5, 3, (50, 4)).astype(np.float32)
    y = np.random.default_rng(1).normal(size=(50, 2)).astype(np.float32)
    inputs = keras.Input((4,))
    z = L.Dense(6, name="hidden", bias_initializer="ones")(inputs)
    z = L.Dropout(0.5)(L.BatchNormalization(epsilon=0.01)(z))
    model = keras.Model(inputs, L.Dense(2, name="head")(z))
    before = [w.numpy() for w in model.weights]
    found = loss_without(tfc.channel_groups(model), (x, y), "mse")({"hidden": [1, 4, 5]})
    hidden = x @ model.get_layer("hidden").kernel.numpy()[:, [1, 4, 5]]
    normal = (hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + 0.01)
    outputs = normal @ model.get_layer("head").kernel.numpy()[[1, 4, 5]]
    assert found == pytest.approx(np.mean((outputs - y) ** 2), rel=1e-4)
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, new.numpy())


def two_branches():
    """Of two branches only `useful` reaches the output; by magnitude they look alike."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8,))
    useful = L.Dense(20, activation="relu", name="useful")(inputs)
    useless = L.Dense(20, activation="relu", name="useless")(inputs)
    useless = L.Rescaling(0.0)(L.Dense(4, name="narrow")(useless))
    outputs = L.Add()([L.Dense(4, name="head")(useful), useless])
    return keras.Model(inputs, outputs)


def test_a_budget_is_met_where_it_costs_no_loss():
    model = two_branches()
    x = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
    data = x, model.predict(x, verbose=0)
    small = tfc.prune_channels(model, keep_macs=0.6, scope="measured", data=data, loss="mse")
    assert [small.get_layer(name).units for name in ("useful", "useless")] == [20, 4]
    np.testing.assert_allclose(small.predict(x, verbose=0), data[1], atol=1e-5)
    alike = tfc.prune_channels(model, keep_macs=0.6)
    assert alike.get_layer("useful").units < 16


def test_bad_input():
    model = two_branches()
    data = np.zeros((8, 8)), np.zeros((8, 4))
    with pytest.raises(tfc.InputError, match="data must be given for scope='measured'"):
        tfc.prune_channels(model, keep_macs=0.5, scope="measured")
    with pytest.raises(tfc.InputError, match="must go with scope='global'.*scope='measured'"):
        tfc.prune_channels(model, keep_macs=0.5, scope="measured", per="macs", data=data)
    with pytest.raises(tfc.InputError, match="Unknown scope 'measure'. Did you mean 'measured'"):
        tfc.prune_channels(model, keep_macs=0.5, scope="measure")
    with pytest.raises(tfc.InputError, match="compiled with a loss"):
        tfc.prune_channels(model, keep_macs=0.5, scope="measured", data=data)
    with pytest.raises(tfc.InputError, match="a loss needs labels"):
        tfc.prune_channels(model, keep_macs=0.5, scope="measured", data=data[0], loss="mse")
