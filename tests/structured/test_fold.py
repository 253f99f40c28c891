"""Folding BatchNorm changes no output and leaves no BatchNorm that a neighbour can absorb."""

import keras
import numpy as np
import pytest

from tfcompress.structured import fold_batch_norm

layers = keras.layers
HOSTS = {
    "dense": ((6,), lambda: layers.Dense(4)),
    "dense on images": ((5, 5, 3), lambda: layers.Dense(4, use_bias=False)),
    "conv1d": ((9, 3), lambda: layers.Conv1D(4, 3, padding="causal")),
    "conv2d": ((8, 8, 3), lambda: layers.Conv2D(4, 3, use_bias=False)),
    "grouped conv2d": ((8, 8, 4), lambda: layers.Conv2D(4, 3, groups=2)),
    "conv3d": ((5, 5, 5, 2), lambda: layers.Conv3D(4, 3)),
    "depthwise": ((8, 8, 3), lambda: layers.DepthwiseConv2D(3, depth_multiplier=2)),
    "depthwise 1d": ((9, 3), lambda: layers.DepthwiseConv1D(3)),
    "separable": ((8, 8, 3), lambda: layers.SeparableConv2D(4, 3)),
    "transposed": ((8, 8, 3), lambda: layers.Conv2DTranspose(4, 3, strides=2, use_bias=False)),
    "transposed 1d": ((8, 3), lambda: layers.Conv1DTranspose(4, 3)),
}


def batch_norm(**options):
    """A BatchNorm as training leaves it: no value is where it started."""
    random = keras.initializers.RandomUniform
    return layers.BatchNormalization(
        beta_initializer=random(-1, 1, seed=1),
        gamma_initializer=random(-2, 2, seed=2),
        moving_mean_initializer=random(-1, 1, seed=3),
        moving_variance_initializer=random(0.1, 3, seed=4),
        **options,
    )


def norms(model):
    return [x for x in model.layers if isinstance(x, layers.BatchNormalization)]


def assert_same(model, folded):
    x = np.random.default_rng(0).normal(size=(3, *model.input_shape[1:])).astype(np.float32)
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(folded.predict(x, verbose=0), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", HOSTS)
def test_the_layer_before_absorbs_it(name):
    shape, host = HOSTS[name]
    model = keras.Sequential([keras.Input(shape), host(), batch_norm(), layers.ReLU()])
    folded = fold_batch_norm(model)
    assert not norms(folded) and norms(model)
    assert_same(model, folded)


@pytest.mark.parametrize("options", [{"scale": False}, {"center": False}, {"epsilon": 0.1}])
def test_its_options_are_minded(options):
    model = keras.Sequential([keras.Input((6,)), layers.Dense(4), batch_norm(**options)])
    folded = fold_batch_norm(model)
    assert not norms(folded)
    assert_same(model, folded)


def test_the_dense_layer_after_absorbs_it():
    model = keras.Sequential([keras.Input((6,)), batch_norm(), layers.Dense(4, activation="relu")])
    folded = fold_batch_norm(model)
    assert not norms(folded)
    assert_same(model, folded)


def test_a_dense_layer_absorbs_one_of_two():
    model = keras.Sequential([keras.Input((6,)), batch_norm(), layers.Dense(4), batch_norm()])
    folded = fold_batch_norm(model)
    assert len(norms(folded)) == 1
    assert_same(model, folded)


def after_an_activation(x):
    return batch_norm()(layers.Conv2D(4, 3, activation="relu")(x))


def beside_another_reader(x):
    x = layers.Conv2D(4, 3)(x)
    return layers.Add()([x, batch_norm()(x)])


def on_a_shared_layer(x):
    shared = layers.Conv2D(3, 3, padding="same")
    return batch_norm()(shared(shared(x)))


def over_another_axis(x):
    return batch_norm(axis=1)(layers.Conv2D(4, 3)(x))


@pytest.mark.parametrize(
    "build", [after_an_activation, beside_another_reader, on_a_shared_layer, over_another_axis]
)
def test_it_stays_where_folding_would_not_be_exact(build):
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, build(inputs))
    folded = fold_batch_norm(model)
    assert len(norms(folded)) == 1
    assert_same(model, folded)


def test_nested_models_are_folded_across_their_borders():
    inner = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3)])
    model = keras.Sequential([keras.Input((8, 8, 3)), inner, batch_norm()])
    folded = fold_batch_norm(model)
    assert not norms(folded)
    assert_same(model, folded)
