"""Dead channels leave a model that goes on computing the same."""

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

import tfcompress as tfc
from tfcompress.structured import dead_channels, remove_dead_channels

layers = keras.layers


def difference(model, small, shape, scale=1.0):
    x = scale * np.random.default_rng(0).normal(size=(16, *shape)).astype(np.float32)
    return np.abs(model.predict(x, verbose=0) - small.predict(x, verbose=0)).max()


def convolutions(padding="valid", bias=True):
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, padding=padding, name="first")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU()(x)
    x = layers.Conv2D(5, 3, padding=padding, use_bias=bias, name="second", activation="relu")(x)
    outputs = layers.Dense(2, name="head")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, outputs)


def silence_incoming(model, channels, beta):
    """The channels no longer depend on the input: BatchNorm gives them a constant."""
    layer, norm = model.get_layer("first"), model.get_layer("norm")
    kernel, bias = layer.get_weights()
    kernel[..., channels] = 0
    layer.set_weights([kernel, bias])
    gamma, shift, mean, variance = norm.get_weights()
    shift[channels] = beta
    norm.set_weights([gamma, shift, mean, variance])


@pytest.mark.parametrize("bias", [True, False])
def test_constants_move_into_the_next_bias(bias):
    model = convolutions(bias=bias)
    silence_incoming(model, [1, 4], beta=0.7)
    small = remove_dead_channels(model)
    assert small.get_layer("first").filters == 4
    assert small.get_layer("second").use_bias
    assert difference(model, small, (8, 8, 3)) < 1e-5


def test_a_constant_before_zero_padding_stays_and_the_report_says_why():
    model = convolutions(padding="same")
    silence_incoming(model, [1, 4], beta=0.7)
    found = dead_channels(model)
    assert found.dead["first"].size == 0
    assert "'second' reads with zeros around it" in found.stay["first"]
    assert found.stay["first"] in str(found)


def test_a_constant_that_the_activation_stops_goes_in_spite_of_padding():
    model = convolutions(padding="same")
    silence_incoming(model, [1, 4], beta=-0.7)
    small = remove_dead_channels(model)
    assert small.get_layer("first").filters == 4
    assert difference(model, small, (8, 8, 3)) < 1e-5


def test_a_relu_that_never_opens_behind_values_that_are_not_negative():
    inputs = keras.Input((4,))
    x = layers.Dense(5, activation="relu", name="open")(inputs)
    x = layers.Dense(6, activation="relu", name="shut")(x)
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    kernel, bias = model.get_layer("shut").get_weights()
    kernel = np.abs(kernel)
    kernel[:, [0, 3]] *= -1
    bias[[0, 3]] = -0.1
    model.get_layer("shut").set_weights([kernel, bias])
    small = remove_dead_channels(model)
    assert small.get_layer("shut").units == 4
    assert difference(model, small, (4,), 100) < 1e-3


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos3"])
def test_a_relu_behind_an_upsampling_that_may_overshoot(interpolation):
    inputs = keras.Input((6, 6, 1))
    x = layers.Activation("sigmoid")(inputs)
    x = layers.UpSampling2D(2, interpolation=interpolation)(x)
    x = layers.Conv2D(2, 1, activation="relu", name="mid")(x)
    model = keras.Model(inputs, layers.Conv2D(2, 1, name="head")(x))
    # The first opens above 1.02 only, where a sigmoid never comes.
    model.get_layer("mid").set_weights([np.ones((1, 1, 1, 2)), np.array([-1.02, 0.0])])
    small = remove_dead_channels(model)
    between = interpolation in ("nearest", "bilinear")
    assert small.get_layer("mid").filters == (1 if between else 2)
    assert difference(model, small, (6, 6, 1), 50) < 1e-5


def test_what_only_dead_channels_read_dies_with_them_layer_after_layer():
    model = keras.Sequential(
        [keras.Input((4,))]
        + [layers.Dense(8, activation="tanh", name=f"d{i}") for i in range(4)]
        + [layers.Dense(2, name="head")]
    )
    # Each layer's unit 0 is read by the next one's unit 0 alone, and the head does not read it.
    for name in ("d1", "d2", "d3", "head"):
        kernel, bias = model.get_layer(name).get_weights()
        kernel[0, 1 if name != "head" else 0 :] = 0
        model.get_layer(name).set_weights([kernel, bias])
    small = remove_dead_channels(model)
    assert [small.get_layer(f"d{i}").units for i in range(4)] == [7] * 4
    assert difference(model, small, (4,)) < 1e-6


def test_weights_that_decay_has_left_at_1e_20_are_dead_unless_nothing_drowns_them():
    model = convolutions()
    kernel, bias = model.get_layer("second").get_weights()
    kernel[:, :, 2] *= 1e-20
    model.get_layer("second").set_weights([kernel, bias])
    assert dead_channels(model).dead["first"].tolist() == [2]
    assert dead_channels(model, tolerance=0).dead["first"].size == 0
    # All that the layer reads is equally small: then nothing drowns.
    model.get_layer("second").set_weights([kernel * 0 + 1e-20, bias])
    assert dead_channels(model).dead["first"].size == 0


def test_a_network_trained_with_weight_decay_loses_the_units_that_it_gave_up():
    digits = load_digits()
    x = (digits.data / 16).astype(np.float32)
    model = keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(96, activation="relu", kernel_regularizer=keras.regularizers.L2(0.01)),
            layers.Dense(96, activation="relu", kernel_regularizer=keras.regularizers.L2(0.01)),
            layers.Dense(10, kernel_regularizer=keras.regularizers.L2(0.01)),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-2), loss, steps_per_execution=28)
    model.fit(x, digits.target, epochs=25, batch_size=64, verbose=0)
    small = remove_dead_channels(model)
    assert small.count_params() < 0.75 * model.count_params()
    outputs = model.predict(x, verbose=0)
    assert np.abs(outputs - small.predict(x, verbose=0)).max() < 1e-5 * np.abs(outputs).max()


def test_one_channel_stays_where_all_are_dead():
    model = convolutions()
    model.get_layer("second").set_weights([np.zeros((3, 3, 6, 5)), np.ones(5)])
    found = dead_channels(model)
    assert found.stay["first"] == "all are dead: one stays"
    assert remove_dead_channels(model).get_layer("first").filters == 1


def test_bad_input():
    with pytest.raises(tfc.InputError, match=r"tolerance must be at least 0.*tolerance=-1"):
        dead_channels(convolutions(), tolerance=-1)
    with pytest.raises(tfc.InputError, match="largest_input must be a positive number.*'1'"):
        dead_channels(convolutions(), largest_input="1")
    broken = convolutions()
    broken.get_layer("second").bias.assign([np.nan, 0, 0, 0, 0])
    with pytest.raises(tfc.InputError, match="Weights 'second/bias' must be finite"):
        remove_dead_channels(broken)
