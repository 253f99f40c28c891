"""Flatten -> Dense becomes pooling -> Dense: exact where a feature map is constant."""

import keras
import numpy as np
import pytest

from tfcompress.errors import InputError
from tfcompress.structured.pool_head import pool_head

layers = keras.layers


def with_head(*head, shape=(4, 6, 3)):
    return keras.Sequential([keras.Input(shape), *head])


def constant_maps(shape, n=5):
    """Feature maps that are the same at all positions."""
    values = np.random.default_rng(0).normal(size=(n, *[1] * (len(shape) - 1), shape[-1]))
    return np.broadcast_to(values, (n, *shape)).astype(np.float32)


@pytest.mark.parametrize(
    ("shape", "behind"),
    [
        ((7, 3), [layers.Flatten()]),
        ((4, 6, 3), [layers.Flatten(), layers.Dropout(0.5), layers.ReLU()]),
        ((4, 6, 3), [layers.Reshape((-1,)), layers.Activation("tanh")]),
        ((2, 3, 4, 3), [layers.Flatten()]),
    ],
)
def test_it_is_exact_where_the_maps_are_constant(shape, behind):
    model = with_head(*behind, layers.Dense(4, "softmax", bias_initializer="normal"), shape=shape)
    x = constant_maps(shape)
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(pool_head(model).predict(x, verbose=0), expected, atol=1e-5)


def test_the_kernel_is_summed_over_the_positions():
    model = with_head(layers.Flatten(), layers.Dense(1, name="head"), shape=(2, 2, 2))
    model.layers[-1].set_weights([np.arange(8.0).reshape(8, 1), np.array([7.0])])
    kernel, bias = pool_head(model).get_layer("head").get_weights()
    # Rows come as (position, channel): channel 0 owns rows 0 2 4 6, channel 1 rows 1 3 5 7.
    assert kernel.tolist() == [[12.0], [16.0]] and bias.tolist() == [7.0]


def test_the_users_model_stays_and_the_rest_is_kept():
    model = with_head(
        layers.Conv2D(5, 3, name="conv"), layers.Flatten(), layers.Dense(4, name="head")
    )
    config, before = model.get_config(), model.get_weights()
    small = pool_head(model)
    assert model.get_config() == config
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)
    np.testing.assert_array_equal(small.get_layer("conv").kernel, model.get_layer("conv").kernel)
    assert [layer.name for layer in small.layers[1:]] == ["conv", "flatten_pool", "head"]
    assert small.get_layer("head").kernel.shape == (5, 4)


def test_it_trains_saves_and_loads(tmp_path):
    x = np.random.default_rng(0).normal(size=(64, 4, 6, 3)).astype(np.float32)
    y = x.mean((1, 2)).argmax(-1)
    small = pool_head(with_head(layers.Flatten(), layers.Dense(3)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    small.compile(keras.optimizers.Adam(0.1), loss=loss)
    losses = small.fit(x, y, epochs=5, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    small.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), small.predict(x, verbose=0))


def test_nested_models_and_several_heads():
    body = keras.Sequential([keras.Input((4, 4, 2)), layers.Conv2D(3, 3), layers.Flatten()])
    x = keras.Input((4, 4, 2))
    features = body(x)
    other = layers.Flatten()(layers.Conv2D(2, 1)(x))
    model = keras.Model(x, [layers.Dense(2, name="a")(features), layers.Dense(2, name="b")(other)])
    small = pool_head(model)
    assert small.get_layer("a").kernel.shape == (3, 2)
    assert small.get_layer("b").kernel.shape == (2, 2)


def several_readers():
    x = keras.Input((4, 4, 2))
    flat = layers.Flatten(name="flat")(x)
    return keras.Model(x, [layers.Dense(2, name="a")(flat), layers.Dense(2, name="b")(flat)])


def shared_dense():
    x, dense = keras.Input((4, 4, 2)), layers.Dense(2, name="shared")
    return keras.Model(x, [dense(layers.Flatten()(x)), dense(layers.Flatten()(layers.ReLU()(x)))])


@pytest.mark.parametrize(
    ("build", "found"),
    [
        (lambda: with_head(layers.GlobalAveragePooling2D(), layers.Dense(2)), "no Flatten"),
        (lambda: with_head(layers.Flatten(), layers.Dense(2), shape=(1, 1, 8)), "no Flatten"),
        (lambda: with_head(layers.Flatten(), shape=(2, 2, 2)), "the model's output behind"),
        (
            lambda: with_head(
                layers.Flatten(), layers.BatchNormalization(name="bn"), layers.Dense(2)
            ),
            "BatchNormalization 'bn' behind Flatten 'flatten'",
        ),
        (
            lambda: with_head(layers.Flatten(), layers.Softmax(), layers.Dense(2)),
            "Softmax 'softmax' behind",
        ),
        (several_readers, r"several readers \(Dense '[ab]', Dense '[ab]'\) behind Flatten 'flat'"),
        (shared_dense, "Dense 'shared', which is called in several places"),
    ],
)
def test_without_such_a_pair_the_line_says_what_it_found(build, found):
    with pytest.raises(InputError, match=found):
        pool_head(build())
