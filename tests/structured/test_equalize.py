"""Equalisation changes no output, and channels' ranges meet where they are made and read."""

from unittest import mock

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.structured import random_graphs
from tests.structured.random_graphs import models, outputs, randomize, samples
from tests.structured.silencing import distance, value
from tests.structured.test_removal_properties import examples
from tfcompress.errors import InputError
from tfcompress.structured import equalize, fold_batch_norm

layers = keras.layers

pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")


@st.composite
def mostly_homogeneous(draw):
    """Random graphs in which most activations let channels scale."""
    with mock.patch.object(random_graphs, "ACTIVATIONS", ["relu", "linear", "leaky_relu", "tanh"]):
        return draw(models())


def spread_out(model, seed):
    """Makes the channels of every kernel unequal: by factors of 1/16 to 16."""
    random = np.random.default_rng(seed)
    for variable in model.weights:
        if len(variable.shape) >= 2 and variable.name.endswith("kernel"):
            factors = 2.0 ** random.uniform(-4, 4, variable.shape[-1])
            variable.assign(value(variable) * (factors / factors.max()))


@examples(15)
@given(mostly_homogeneous(), st.integers(0, 2**16))
def test_outputs_stay_and_ranges_meet(model, seed):
    spread_out(model, seed)
    x, weights = samples(model), model.get_weights()
    before = outputs(model, x)
    equalized = equalize(model)
    assert distance(outputs(equalized, x), before) < 1e-4
    assert distance(outputs(model, x), before) == 0
    for now, then in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(now, then)
    assert equalized.equalization.converged
    # Where all ranges have met there is nothing left to do.
    for group in equalize(equalized).equalization.groups:
        low, high = group.factors
        assert 0.97 < low <= high < 1.03


def graph(build, shape=(8, 8, 3), seed=1):
    inputs = keras.Input(shape)
    model = keras.Model(inputs, build(inputs))
    randomize(model, seed)
    spread_out(model, seed)
    return model


def assert_equal(model, equalized):
    x = samples(model)
    assert distance(outputs(equalized, x), outputs(model, x)) < 1e-5


def largest(kernel, axis):
    kernel = np.abs(value(kernel))
    return kernel.max(tuple(i for i in range(kernel.ndim) if i != axis % kernel.ndim))


def test_both_ranges_of_a_channel_become_their_geometric_mean():
    def build(x):
        x = layers.Conv2D(5, 3, activation="relu", name="first")(x)
        x = layers.MaxPooling2D()(layers.ZeroPadding2D()(x))
        return layers.Conv2D(4, 3, name="second")(x)

    model = graph(build)
    equalized = equalize(model)
    assert_equal(model, equalized)
    made = largest(model.get_layer("first").kernel, -1)
    read = largest(model.get_layer("second").kernel, -2)
    for name, axis in (("first", -1), ("second", -2)):
        found = largest(equalized.get_layer(name).kernel, axis)
        np.testing.assert_allclose(found, np.sqrt(made * read), rtol=2e-3)
    (group,) = equalized.equalization.groups
    assert (group.made_by, group.read_by, group.channels) == (("first",), ("second",), 5)
    assert equalized.equalization.skipped == {"second": "it is an output of the model"}


def test_unequal_channels_that_their_readers_make_up_for_become_equal():
    dense = [layers.Dense(6, activation="relu"), layers.Dense(4)]
    model = keras.Sequential([keras.Input((5,)), *dense])
    randomize(model, 3)
    factors = 2.0 ** np.arange(6)
    first, second = (value(layer.kernel) for layer in dense)
    dense[0].kernel.assign(first / np.abs(first).max(0) * factors)
    dense[1].kernel.assign(second / np.abs(second).max(1, keepdims=True) / factors[:, None])
    equalized = equalize(model)
    assert_equal(model, equalized)
    (group,) = equalized.equalization.groups
    assert group.precision == pytest.approx((2**-2.5, 1.0), rel=2e-3)
    assert group.factors == pytest.approx((1.0, 32.0), rel=2e-3)


def test_a_depthwise_convolution_scales_on_both_sides():
    def build(x):
        x = layers.Conv2D(5, 1, activation="relu", name="expand")(x)
        x = layers.DepthwiseConv2D(3, depth_multiplier=2, activation="relu", name="depthwise")(x)
        return layers.Conv2D(4, 1, name="project")(x)

    model = graph(build)
    equalized = equalize(model)
    assert_equal(model, equalized)
    depthwise = equalized.get_layer("depthwise").kernel
    np.testing.assert_allclose(
        largest(equalized.get_layer("expand").kernel, -1), largest(depthwise, -2), rtol=5e-3
    )
    made = np.abs(value(depthwise)).max((0, 1)).reshape(-1)
    np.testing.assert_allclose(largest(equalized.get_layer("project").kernel, -2), made, rtol=5e-3)


def test_what_an_addition_ties_scales_by_one_factor():
    def build(x):
        x = layers.Conv2D(5, 3, padding="same", name="stem")(x)
        y = layers.Conv2D(5, 3, padding="same", name="branch")(layers.ReLU()(x))
        return layers.Dense(3, name="head")(layers.Flatten()(layers.Add()([x, y])))

    model = graph(build)
    equalized = equalize(model)
    assert_equal(model, equalized)
    (group,) = equalized.equalization.groups
    assert (group.made_by, group.read_by) == (("stem", "branch"), ("branch", "head"))
    branch = equalized.get_layer("branch").kernel
    head = np.abs(value(equalized.get_layer("head").kernel)).reshape(64, 5, 3).max((0, 2))
    made = largest(equalized.get_layer("stem").kernel, -1) * largest(branch, -1)
    np.testing.assert_allclose(made, largest(branch, -2) * head, rtol=1e-2)


REFUSED = {
    "sigmoid": (lambda: layers.Activation("sigmoid"), "sigmoid is not positively homogeneous"),
    "relu6": (lambda: layers.Activation("relu6"), "relu6 clips at 6"),
    "ReLU(6)": (lambda: layers.ReLU(6.0), "it clips at 6"),
    "swish": (lambda: layers.Activation("swish"), "silu is not positively homogeneous"),
    "softmax": (lambda: layers.Softmax(), "it is not positively homogeneous"),
    "normalization": (lambda: layers.LayerNormalization(), "it is not positively homogeneous"),
    "batch": (lambda: layers.BatchNormalization(axis=1), "no neighbour can absorb it"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_scale_is_skipped_with_the_reason(name):
    between, reason = REFUSED[name]
    model = graph(lambda x: layers.Conv2D(4, 3)(between()(layers.Conv2D(5, 3, name="first")(x))))
    equalized = equalize(model)
    assert not equalized.equalization.groups
    assert reason in equalized.equalization.skipped["first"]
    assert reason in str(equalized.equalization)
    for now, then in zip(equalized.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(now, then)


def test_batch_norm_is_folded_first_and_its_statistics_scale_along():
    def build(x):
        x = layers.Conv2D(5, 3, use_bias=False, name="first")(x)
        x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
        return layers.Conv2D(4, 3)(x)

    model = graph(build)
    equalized = equalize(model)
    assert_equal(model, equalized)
    assert not any(isinstance(x, layers.BatchNormalization) for x in equalized.layers)
    factor = largest(fold_batch_norm(model).get_layer("first").kernel, -1) / largest(
        equalized.get_layer("first").kernel, -1
    )
    mean, deviation = equalized.pre_activations["first"]
    norm = model.get_layer("norm")
    np.testing.assert_allclose(mean * factor, value(norm.beta), rtol=1e-4)
    variance = value(norm.moving_variance)
    expected = value(norm.gamma) * np.sqrt(variance / (variance + norm.epsilon))
    np.testing.assert_allclose(deviation * factor, expected, rtol=1e-4)


@pytest.mark.parametrize("name", ["relu6", "ReLU(6)", "in the layer"])
def test_clipped_relus_become_plain_ones_on_demand(name):
    def build(x):
        x = layers.Conv2D(5, 3, activation="relu6" if name == "in the layer" else None)(x)
        x = x if name == "in the layer" else REFUSED[name][0]()(x)
        return layers.Conv2D(4, 3)(x)

    model = graph(build)
    equalized = equalize(model, unclip=True)
    assert len(equalized.equalization.groups) == len(equalized.equalization.unclipped) == 1
    (x,) = samples(model)
    small = [x / 100]  # no activation passes 6
    assert distance(outputs(equalized, small), outputs(model, small)) < 1e-5
    large = [x * 1e4]
    assert distance(outputs(equalized, large), outputs(model, large)) > 1
    saved = keras.Model.from_config(equalized.get_config())
    saved.set_weights(equalized.get_weights())
    assert distance(outputs(saved, large), outputs(equalized, large)) == 0


def test_the_model_keeps_its_kind():
    inner = keras.Sequential(
        [keras.Input((6,)), layers.Dense(5, activation="relu", name="a"), layers.Dense(4)],
        name="inner",
    )
    model = keras.Sequential([keras.Input((6,)), inner, layers.ReLU(), layers.Dense(2, name="b")])
    randomize(model, 0)
    equalized = equalize(model)
    assert_equal(model, equalized)
    assert isinstance(equalized, keras.Sequential)
    assert isinstance(equalized.layers[0], keras.Sequential)
    made_by = [group.made_by for group in equalized.equalization.groups]
    assert ("inner/a",) in made_by


def test_dead_channels_stay_and_no_factor_passes_its_limit():
    model = graph(lambda x: layers.Conv2D(4, 3)(layers.Conv2D(5, 3, activation="relu")(x)))
    kernel = value(model.layers[1].kernel)
    kernel[..., 0] = 0
    kernel[..., 1] *= 1e-12
    model.layers[1].kernel.assign(kernel)
    (group,) = equalize(model, largest_factor=8.0).equalization.groups
    assert group.factors[0] == pytest.approx(1 / 8)
    equalized = equalize(model)
    assert_equal(model, equalized)
    np.testing.assert_array_equal(
        value(equalized.layers[2].kernel)[:, :, 0], value(model.layers[2].kernel)[:, :, 0]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"largest_factor": 0.5}, "largest_factor of equalize must be a number of at least 1"),
        ({"largest_factor": float("nan")}, "largest_factor of equalize must be"),
        ({"sweeps": 0}, "sweeps of equalize must be"),
        ({"unclip": "relu6"}, "unclip of equalize must be True or False"),
    ],
)
def test_bad_input_is_one_line(options, message):
    model = graph(layers.Dense(2), (4,))
    with pytest.raises(InputError, match=message):
        equalize(model, **options)
    model.layers[1].kernel.assign(np.full((4, 2), np.nan))
    with pytest.raises(InputError, match="must be finite to be equalised"):
        equalize(model)
    with pytest.raises(InputError, match="must be a Keras 3 model"):
        equalize("model.keras")
