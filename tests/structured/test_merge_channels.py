"""Channels that hold the same become one."""

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tfcompress.structured import merge_channels

layers = keras.layers


def twins(flatten=False):
    """Channels 4..7 of the first layer are 0.5, 1, 2, 3 times the channels 0..3."""
    inputs = keras.Input((8, 8, 2))
    x = layers.Conv2D(8, 3, activation="relu", name="first")(inputs)
    x = layers.Conv2D(5, 3, activation="relu", name="second")(x) if not flatten else x
    x = layers.Flatten()(x) if flatten else layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(3, name="head")(x))
    kernel, bias = model.get_layer("first").get_weights()
    bias[:4] = 0.1
    factors = np.array([0.5, 1, 2, 3])
    kernel[..., 4:], bias[4:] = factors * kernel[..., :4], factors * bias[:4]
    model.get_layer("first").set_weights([kernel, bias])
    return model


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(48, 8, 8, 2)).astype(np.float32)


@pytest.mark.parametrize("flatten", [False, True])
def test_equal_channels_merge_without_a_change(x, flatten):
    model = twins(flatten)
    kernel, bias = model.get_layer("first").get_weights()
    kernel[..., 4:], bias[4:] = kernel[..., :4], bias[:4]
    model.get_layer("first").set_weights([kernel, bias])
    small = merge_channels(model, x, {"kmeans": {"clusters": 4}}, rules=SKIP if not flatten else [])
    assert small.get_layer("first").filters == 4
    np.testing.assert_allclose(
        model.predict(x, verbose=0), small.predict(x, verbose=0), rtol=1e-4, atol=1e-5
    )


SKIP = [{"layers": "second", "skip": "not looked at here"}]


def test_multiples_merge_without_a_change_once_they_are_in_one_cluster(x):
    model = twins()
    kernel, _ = model.get_layer("first").get_weights()
    model.get_layer("first").set_weights([kernel[..., :1] * np.linspace(1, 1.7, 8), np.zeros(8)])
    small = merge_channels(model, x, {"kmeans": {"clusters": 2}}, rules=SKIP)
    assert small.get_layer("first").filters == 2
    np.testing.assert_allclose(
        model.predict(x, verbose=0), small.predict(x, verbose=0), rtol=1e-4, atol=1e-5
    )


def test_merging_harms_less_than_removing(x):
    model = twins()
    merged = merge_channels(model, x, {"kmeans": {"clusters": 4}}, rules=SKIP)
    removed = tfc.keep_channels(tfc.channel_groups(model), {"first": [0, 1, 2, 3]})
    y = model.predict(x, verbose=0)
    harm = [np.square(m.predict(x, verbose=0) - y).mean() for m in (merged, removed)]
    assert harm[0] < harm[1] / 4


def test_narrow_groups_stay_and_the_model_is_untouched(x):
    model = twins()
    before = [w.copy() for w in model.get_weights()]
    small = merge_channels(model, x, {"kmeans": {"clusters": 8}})
    assert small.count_params() == model.count_params()
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_channels_that_are_not_read_equally_often_stay(x):
    inputs = keras.Input((8, 8, 2))
    y = layers.Conv2D(8, 3, name="first")(inputs)
    y = layers.Concatenate()([y, y[..., :4]])
    model = keras.Model(inputs, layers.Conv2D(3, 1, name="head")(y))
    small = merge_channels(model, x, {"kmeans": {"clusters": 2}})
    assert small.get_layer("first").filters == 8


def test_bad_input(x):
    with pytest.raises(tfc.InputError, match="must have the shape"):
        merge_channels(twins(), x[:, :4])
    with pytest.raises(tfc.InputError, match="Unknown clustering method"):
        merge_channels(twins(), x, "kmean")
    with pytest.raises(tfc.InputError, match="number of batches must be a whole number.*'a'"):
        merge_channels(twins(), x, batches="a")
