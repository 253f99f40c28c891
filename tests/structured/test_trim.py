"""Channels that pruning has emptied go."""

import keras
import numpy as np
import pytest

import tfcompress as tfc

layers = keras.layers


def network():
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 3, name="first")(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Conv2D(5, 3, name="second")(x)
    return keras.Model(inputs, layers.Dense(2, name="head")(layers.Flatten()(x)))


def test_the_share_of_zeros_counts_all_kernels_of_a_channel():
    model = network()
    first, second = model.get_layer("first"), model.get_layer("second")
    kernel, bias = first.get_weights()
    kernel[..., 1] = 0  # 27 weights that make channel 1 are zero, 45 that read it are not: 27/72
    first.set_weights([kernel, bias])
    assert tfc.trim(model, max_zeros=0.37).get_layer("first").filters == 3
    assert tfc.trim(model, max_zeros=0.38).get_layer("first").filters == 4
    kernel, bias = second.get_weights()
    kernel[:, :, 1] = 0
    second.set_weights([kernel, bias])
    small = tfc.trim(model, max_zeros=0.99)
    assert small.get_layer("first").filters == 3
    x = np.random.default_rng(0).normal(size=(4, 6, 6, 3)).astype(np.float32)
    np.testing.assert_allclose(
        model.predict(x, verbose=0), small.predict(x, verbose=0), rtol=1e-5, atol=1e-6
    )


def test_one_channel_and_what_rules_ask_for_stay():
    model = network()
    model.set_weights([w * 0 for w in model.get_weights()])
    small = tfc.trim(model, rules=[{"layers": "second", "keep_at_least": 0.6}])
    assert [small.get_layer(name).filters for name in ("first", "second")] == [1, 3]


def test_bad_input():
    with pytest.raises(tfc.InputError, match=r"max_zeros of trim must be in \[0, 1\).*=1"):
        tfc.trim(network(), max_zeros=1)
