"""Over random graphs: what is removed was silent, and nothing else changes.

TFCOMPRESS_EXAMPLES=500 searches longer, in other places each time.
"""

import os

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.structured.random_graphs import models, outputs, samples
from tests.structured.silencing import (
    choose,
    distance,
    made_differently,
    silenced,
    sliced,
    value,
)
from tfcompress.structured import channel_groups, keep_channels

SEARCH = int(os.environ.get("TFCOMPRESS_EXAMPLES", "0"))
EXACT = 1e-5

# Keras draws a seed from `random` for every layer; all weights are set afterwards.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")


def examples(count):
    return settings(
        max_examples=SEARCH or count,
        derandomize=not SEARCH,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@examples(40)
@given(models(), st.data())
def test_removed_channels_are_silenced_channels(model, data):
    groups = channel_groups(model)
    kept = choose(data.draw, groups, st)
    x = samples(model)
    small = keep_channels(groups, kept)
    with silenced(groups, kept):
        expected = outputs(model, x)
        with made_differently(groups, kept, seed=1):
            heard = distance(outputs(model, x), expected)
    assert heard < EXACT, "what makes the channels that go is still heard"
    assert distance(outputs(small, x), expected) < EXACT


@examples(15)
@given(models(), st.data())
def test_the_model_is_untouched_and_its_weights_are_cut(model, data):
    x, weights, config = samples(model), model.get_weights(), model.get_config()
    before = outputs(model, x)
    groups = channel_groups(model)
    kept = choose(data.draw, groups, st)
    small = keep_channels(groups, kept)
    for now, then in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(now, then)
    assert keras.tree.map_structure(str, model.get_config()) == keras.tree.map_structure(
        str, config
    )
    assert distance(outputs(model, x), before) == 0
    for new, (layer, arrays) in zip(small_layers(small), sliced(model, groups, kept), strict=True):
        assert new.name == layer.name or layer not in model.layers
        for variable, array in zip(new.weights, arrays, strict=True):
            assert_scaled(value(variable), array, layer)
    assert [t.shape for t in small.outputs] == [t.shape for t in model.outputs]
    names = [[x._keras_history.operation.name for x in m.inputs] for m in (small, model)]
    assert names[0] == names[1]


def small_layers(model):
    return model._flatten_layers(include_self=False)


def assert_scaled(found, expected, layer):
    """Weights are slices; those that make queries may hold the changed scale of their products."""
    attends = isinstance(layer, keras.layers.MultiHeadAttention | keras.layers.EinsumDense)
    if attends and found.shape == expected.shape and np.any(expected):
        found = found * (np.linalg.norm(expected) / np.linalg.norm(found))
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    else:
        np.testing.assert_array_equal(found, expected)


@examples(15)
@given(models())
def test_nothing_removed_is_nothing_changed(model):
    groups, x = channel_groups(model), samples(model)
    expected = outputs(model, x)
    for kept in ({}, {group.name: np.arange(group.size) for group in groups}):
        same = keep_channels(groups, kept)
        assert distance(outputs(same, x), expected) == 0
        for now, then in zip(same.get_weights(), model.get_weights(), strict=True):
            np.testing.assert_array_equal(now, then)


@examples(6)
@given(models(most=4), st.data())
def test_the_small_model_is_a_plain_model(tmp_path_factory, model, data):
    groups = channel_groups(model)
    kept = choose(data.draw, groups, st)
    assume(kept)
    small, x = keep_channels(groups, kept), samples(model)
    path = tmp_path_factory.mktemp("small") / "small.keras"
    expected = outputs(small, x)
    small.save(path)
    assert distance(outputs(keras.models.load_model(path), x), expected) == 0
    small.compile("sgd", ["mse"] * len(small.outputs), run_eagerly=True)
    loss = small.train_on_batch(x, [np.zeros_like(y) for y in expected])
    assert np.isfinite(loss).all()
    sizes = {group.name: len(kept.get(group.name, range(group.size))) for group in groups}
    again = {group.name: group.size for group in channel_groups(small)}
    # A single channel may be taken for one that is repeated (broadcast), and stay.
    assert again.items() <= sizes.items()
    assert all(name in again for name, size in sizes.items() if size > 1)
