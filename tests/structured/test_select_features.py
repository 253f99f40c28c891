"""Columns whose removal costs least go; the others keep their weights, constants their effect."""

import keras
import numpy as np
import pytest

from tfcompress import tflite
from tfcompress.errors import InputError
from tfcompress.structured.select_features import kept_features, select_features

layers = keras.layers


def table(n=200, columns=5, seed=0):
    return np.random.default_rng(seed).normal(size=(n, columns)).astype(np.float32)


def linear(w):
    """y = x w + 1"""
    model = keras.Sequential([keras.Input((len(w),)), layers.Dense(1, name="sum")])
    model.set_weights([np.array(w, np.float32).reshape(-1, 1), np.ones(1)])
    return model


def predict(model, *arrays):
    return model.predict(list(arrays) if len(arrays) > 1 else arrays[0], verbose=0)


@pytest.mark.parametrize("score", ["gradient", "magnitude", "permutation"])
def test_the_columns_that_matter_stay(score):
    model, x = linear([0.0, 3.0, 0.1, -4.0, 0.0]), table()
    data = x, predict(model, x) + 0.1 * table(columns=1, seed=1)
    small, kept = select_features(model, data, 2, score, "mse")
    assert kept.tolist() == [1, 3] and kept.dtype == np.int64
    kernel, bias = small.get_layer("sum").get_weights()
    assert kernel.ravel().tolist() == [3.0, -4.0]
    # The mean of what went is in the bias.
    np.testing.assert_allclose(bias, 1 + 0.1 * x[:, 2].mean(), rtol=1e-5)


def test_the_gradient_score_is_what_the_docstring_says():
    # Loss (y - t)^2 with y - t = 1 always: g = 2 w. Deviations from the mean: 1 and 3; |w|: 2, 1.
    x = np.array([[1.0, 3.0], [-1.0, -3.0]], np.float32)
    model = linear([2.0, 1.0])
    data = x, predict(model, x) - 1
    assert select_features(model, data, 1, "gradient", "mse")[1].tolist() == [1]  # 4 against 6
    assert select_features(model, data, 1, "magnitude")[1].tolist() == [1]  # 2 * 1 against 1 * 3


def test_equal_scores_keep_the_first_and_shares_are_rounded():
    x = np.repeat(table(columns=1), 4, axis=1)
    data = x, np.zeros((len(x), 1))
    assert select_features(linear([1.0] * 4), data, 0.5, loss="mse")[1].tolist() == [0, 1]
    assert select_features(linear([1.0] * 4), data, 0.01, loss="mse")[1].tolist() == [0]
    assert select_features(linear([1.0] * 4), data, 1.0, loss="mse")[1].tolist() == [0, 1, 2, 3]


def adapted():
    layer = layers.Normalization()
    layer.adapt(table() * 3 + 2)
    return layer


def series(reader):
    return lambda x: layers.Dense(2)(reader(layers.ReLU()(layers.BatchNormalization()(x))))


def two_readers(x):
    return layers.Dense(2)(layers.Dense(3)(x) + layers.Dense(3, use_bias=False)(layers.PReLU()(x)))


BODIES = {
    "normalized": ((5,), lambda x: layers.Dense(2, use_bias=False)(adapted()(x))),
    "batch norm": ((5,), lambda x: layers.Dense(2)(layers.BatchNormalization()(x))),
    "two readers": ((5,), two_readers),
    "series, lstm": ((6, 5), series(layers.LSTM(3))),
    "series, gru": ((6, 5), series(layers.GRU(3))),
    "series, rnn": ((6, 5), series(layers.SimpleRNN(3))),
    "series, conv": ((6, 5), series(layers.Conv1D(3, 3))),
    "series, pooled": ((6, 5), series(layers.GlobalAveragePooling1D())),
    "series, flat": ((6, 5), series(layers.Flatten())),
    "image": ((6, 7, 5), lambda x: layers.Flatten()(layers.Conv2D(3, 3, use_bias=False)(x))),
    "dense on an image": ((4, 4, 5), lambda x: layers.Dense(2)(x)),
    "concatenated": ((5,), lambda x: layers.Dense(2)(layers.Concatenate()([x, layers.ReLU()(x)]))),
}


@pytest.mark.parametrize(
    ("name", "inside"),
    [(name, False) for name in BODIES] + [("two readers", True), ("image", True)],
)
def test_removing_constant_columns_changes_nothing(name, inside):
    shape, body = BODIES[name]
    inputs = keras.Input(shape)
    model = keras.Model(inputs, body(inputs))
    random = np.random.default_rng(1)
    for weight in model.weights:
        if weight.name in ("gamma", "beta", "moving_mean", "moving_variance", "bias", "alpha"):
            weight.assign(random.uniform(0.2, 1, weight.shape))
    x = random.normal(size=(30, *shape)).astype(np.float32)
    x[..., [0, 3]] = [0.7, -1.3]
    small, kept = select_features(model, x, 3, "magnitude", inside=inside)
    assert kept.tolist() == [1, 2, 4]
    given = x if inside else x[..., kept]
    assert small.input_shape[1:] == given.shape[1:]
    np.testing.assert_allclose(predict(small, given), predict(model, x), rtol=1e-4, atol=1e-5)


def test_of_several_inputs_one_is_selected_from():
    a, b = keras.Input((5,), name="a"), keras.Input((3,), name="b")
    model = keras.Model([a, b], layers.Dense(1, name="sum")(layers.Concatenate()([b, a])))
    model.get_layer("sum").set_weights(
        [np.array([[1], [1], [1], [0], [5], [0], [0], [4]]), np.zeros(1)]
    )
    x = [table(), table(columns=3, seed=1)]
    data = x, predict(model, *x) + 1
    small, kept = select_features(model, data, 2, loss="mse", input_name="a")
    assert kept.tolist() == [1, 4] and kept_features(small, "a").tolist() == [1, 4]
    np.testing.assert_allclose(
        predict(small, x[0][:, kept], x[1]), predict(model, *x), rtol=1e-4, atol=1e-5
    )
    again, kept_b = select_features(
        small, ([x[0][:, kept], x[1]], data[1]), 1, loss="mse", input_name="b"
    )
    assert kept_features(again, "a").tolist() == [1, 4]
    assert kept_features(again, "b").tolist() == kept_b.tolist()
    with pytest.raises(InputError, match="`input_name` say which"):
        kept_features(again)
    with pytest.raises(InputError, match="has several inputs"):
        select_features(model, data, 2, loss="mse")


def test_selecting_again_counts_the_first_models_columns():
    model, x = linear([0.0, 3.0, 2.0, -4.0, 1.0]), table()
    y = predict(model, x) + 1
    small, kept = select_features(model, (x, y), 3, loss="mse")
    again, kept = select_features(small, (x[:, kept], y), 2, loss="mse")
    assert kept.tolist() == kept_features(again).tolist() == [1, 3]
    assert predict(again, x[:, kept]).shape == (200, 1)


@pytest.mark.parametrize("inside", [False, True])
def test_it_trains_saves_loads_and_converts(tmp_path, inside):
    model, x = linear([0.0, 3.0, 0.1, -4.0, 0.0]), table()
    model.compile("sgd", "mse")
    config, before = model.get_config(), model.get_weights()
    y = predict(model, x) + 1
    small, kept = select_features(model, (x, y), 0.4, inside=inside)
    assert model.get_config() == config
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)
    given = x if inside else x[:, kept]
    small.compile("sgd", "mse")
    losses = small.fit(given, y, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    small.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    assert kept_features(loaded).tolist() == [1, 3]
    np.testing.assert_array_equal(predict(loaded, given), predict(small, given))
    flatbuffer = tflite.convert(loaded, scheme="float32")
    assert ("GATHER" in tflite.audit(flatbuffer).operators) == inside
    np.testing.assert_allclose(tflite.run(flatbuffer, given), predict(small, given), rtol=1e-4)


def build(body, shape=(5,)):
    inputs = keras.Input(shape)
    return keras.Model(inputs, body(inputs))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"keep": 0}, r"must be a float in \(0, 1\] or an int in \[1, 5\]. Received: keep=0"),
        ({"keep": 6}, r"an int in \[1, 5\]"),
        ({"keep": 1.5}, r"a float in \(0, 1\]"),
        ({"keep": True}, "keep=True"),
        ({"score": "gradent"}, "Unknown feature score 'gradent'. Did you mean 'gradient'"),
        ({"input_name": "x"}, "Unknown input 'x'"),
        ({"loss": None}, "must be compiled with a loss"),
        ({"data": table()}, r"must be \(x, y\)"),
        ({"data": (table(columns=4), table(columns=1))}, "must have the shape"),
    ],
)
def test_bad_settings_are_refused(options, line):
    given = {"data": (table(), table(columns=1)), "loss": "mse"} | options
    with pytest.raises(InputError, match=line):
        select_features(linear([1.0] * 5), **given)


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (
            lambda x: layers.LayerNormalization(name="norm")(x),
            "LayerNormalization 'norm': it is not",
        ),
        (lambda x: layers.ReLU(name="relu")(x), "must not be an output of the model: 'relu'"),
        (lambda x: layers.Dense(5)(x) + x, "they meet other tensors there"),
        (lambda x: layers.Rescaling([1.0, 2, 3, 4, 5], name="scale")(x), "it has a scale for each"),
        (lambda x: layers.Reshape((1, 5))(x), "Reshape 'reshape': it is not known"),
    ],
)
def test_what_cannot_lose_columns_is_named(body, line):
    with pytest.raises(InputError, match=line):
        select_features(build(body), table(), 2, "magnitude")


def test_shared_readers_and_models_without_selection_are_refused():
    shared = layers.Dense(5, name="shared")
    with pytest.raises(InputError, match="Dense 'shared': it is called in several places"):
        select_features(build(lambda x: shared(shared(x))), table(), 2, "magnitude")
    with pytest.raises(InputError, match="must have columns selected by select_features"):
        kept_features(linear([1.0]))
