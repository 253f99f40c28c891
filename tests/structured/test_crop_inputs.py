"""Borders without saliency are cropped, and what remains keeps its place in the weights."""

import keras
import numpy as np
import pytest

from tfcompress import tflite
from tfcompress.errors import InputError
from tfcompress.structured.crop_inputs import Border, crop_inputs

layers = keras.layers
# What is read of a 12 x 16 image: rows 4 to 8, columns 4 to 12.
INSIDE = (slice(4, 8), slice(4, 12))


def images(n=12, shape=(12, 16, 2), seed=0, only_inside=False):
    x = np.random.default_rng(seed).normal(size=(n, *shape)).astype(np.float32)
    if only_inside:
        kept = np.zeros(shape[:2], bool)
        kept[INSIDE] = True
        x *= kept[:, :, np.newaxis]
    return x


def labels(model, x):
    """What the model says, and one more: every pixel that it reads has a gradient."""
    return model.predict(x, verbose=0) + 1


def pixelwise():
    """Reads single pixels, of them INSIDE only: everything else is multiplied by zero."""
    model = keras.Sequential(
        [keras.Input((12, 16, 2)), layers.Conv2D(3, 1), layers.Flatten(), layers.Dense(4)]
    )
    kernel, bias = model.layers[-1].get_weights()
    kept = np.zeros((12, 16, 3, 1))
    kept[INSIDE] = 1
    model.layers[-1].set_weights([kernel * kept.reshape(-1, 1), bias + 0.5])
    return model


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("saliency", ["gradient", "gradient_times_input"])
def test_pixels_that_nothing_reads_go_and_nothing_changes(inside, saliency):
    model, x = pixelwise(), images()
    data = x, labels(model, x)
    small = crop_inputs(model, data, 0.0, "mse", saliency=saliency, inside=inside)
    assert small.border == Border(top=4, bottom=4, left=4, right=4, saliency=0.0)
    assert small.count_params() == 3 * 3 + (4 * 8 * 3 + 1) * 4
    given = x if inside else x[:, *INSIDE]
    assert small.input_shape == (None, *given.shape[1:])
    np.testing.assert_allclose(
        small.predict(given, verbose=0), model.predict(x, verbose=0), atol=1e-5
    )


def test_the_border_grows_where_the_saliency_is_least():
    # y = sum of w x, x = 1: of |x g| pixel (i, j) has a share like |w|. Rows weigh 1 2 3 4 of 10.
    model = keras.Sequential([keras.Input((4, 3, 1)), layers.Flatten(), layers.Dense(1)])
    model.layers[-1].set_weights([np.repeat([1.0, 2, 3, 4], 3).reshape(-1, 1), np.zeros(1)])
    data = np.ones((2, 4, 3, 1)), np.zeros((2, 1))
    # The top row holds 0.1 of all; what then is left of the outer columns 3 + 3 of 10 * 3 each.
    assert crop_inputs(model, data, 0.09, "mse").border == Border(0, 0, 0, 0)
    assert crop_inputs(model, data, 0.1001, "mse").border == Border(1, 0, 0, 0, pytest.approx(0.1))
    assert crop_inputs(model, data, 0.301, "mse").border == Border(2, 0, 0, 0, pytest.approx(0.3))
    assert crop_inputs(model, data, 0.54, "mse").border == Border(
        2, 0, 1, 0, pytest.approx(0.3 + 0.7 / 3)
    )


@pytest.mark.parametrize("use_bias", [True, False])
def test_what_was_read_at_constant_positions_goes_into_the_bias(use_bias):
    """Black borders are no nothing: a convolution's bias makes values of them."""
    biased = layers.Conv2D(3, 1, activation="relu", bias_initializer="ones")
    dense = layers.Dense(4, use_bias=use_bias)
    model = keras.Sequential([keras.Input((12, 16, 2)), biased, layers.Flatten(), dense])
    x = images(only_inside=True)
    small = crop_inputs(model, (x, labels(model, x)), 0.0, "mse")
    assert small.border == Border(4, 4, 4, 4)
    np.testing.assert_allclose(
        small.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-4, atol=1e-5
    )


def unpadded(x):
    x = layers.Conv2D(4, 3, activation="relu")(x)
    return layers.MaxPooling2D(2)(layers.DepthwiseConv2D(3)(x))


def padded(x):
    x = layers.Conv2D(4, 3, strides=2)(layers.ZeroPadding2D(1)(x))
    x = layers.BatchNormalization()(layers.SeparableConv2D(4, 3, padding="same")(x))
    return layers.Add()([layers.UpSampling2D(2)(layers.AveragePooling2D(2)(x)), x])


def strided(x):
    y = layers.Conv2D(4, 3, strides=2, padding="same")(x)
    z = layers.Conv2D(4, 1, strides=2, padding="same")(x)
    return layers.Concatenate()([layers.PReLU(shared_axes=[1, 2])(y + z), layers.ReLU()(z)])


@pytest.mark.parametrize(
    ("body", "between"),
    [
        (unpadded, []),
        (padded, [layers.ReLU]),
        (strided, [layers.BatchNormalization, layers.PReLU]),
    ],
)
def test_positions_keep_their_weights_through_strides(body, between):
    """A value in the middle, far from any padding, comes from the same pixels and weights."""
    shape = (32, 32, 2)
    x = keras.Input(shape)
    maps = body(x)
    y = layers.Flatten()(maps)
    for layer in between:
        y = layer()(y)
    model = keras.Model(x, layers.Dense(3, name="head")(y))
    model.set_weights(
        [
            np.random.default_rng(i).uniform(0.1, 0.5, w.shape)
            for i, w in enumerate(model.get_weights())
        ]
    )
    head = model.get_layer("head")
    kernel = head.get_weights()[0].reshape(*maps.shape[1:], 3)
    middle = np.zeros_like(kernel)
    at = slice(maps.shape[1] // 2 - 2, maps.shape[1] // 2 + 2)
    middle[at, at] = kernel[at, at]
    head.set_weights([middle.reshape(-1, 3), head.get_weights()[1]])
    pixels = np.random.default_rng(0).normal(size=(6, *shape)).astype(np.float32)
    data = pixels, labels(model, pixels)
    small = crop_inputs(model, data, 0.0, "mse", saliency="gradient")
    assert small.border.top >= 4 and small.border.right >= 4
    assert small.count_params() < model.count_params()
    np.testing.assert_allclose(
        small.predict(pixels, verbose=0), model.predict(pixels, verbose=0), rtol=1e-4
    )


def with_pooled_head(x):
    y = strided(layers.Rescaling(0.5)(x))
    gate = layers.GlobalAveragePooling2D(keepdims=True)(y)
    y = layers.Multiply()([y, layers.Dense(8, activation="sigmoid")(gate)])
    return layers.Dense(3)(layers.GlobalAveragePooling2D()(y))


def test_a_pooled_head_stays_whole_and_smaller_steps_are_allowed():
    x = keras.Input((12, 16, 2))
    model = keras.Model(x, with_pooled_head(x))
    pixels = images(only_inside=True)
    data = pixels, labels(model, pixels)
    assert crop_inputs(model, data, 0, "mse").border == Border(4, 4, 4, 4)
    small = crop_inputs(model, data, 0, "mse", step=1)
    assert small.border == Border(4, 4, 4, 4)
    assert [w.shape for w in small.weights] == [w.shape for w in model.weights]


def test_it_saves_loads_trains_and_converts(tmp_path):
    model, x = pixelwise(), images()
    model.compile("sgd", "mse")
    config, before = model.get_config(), model.get_weights()
    data = x, labels(model, x)
    small = crop_inputs(model, data)
    assert model.get_config() == config
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)
    small.compile("sgd", "mse")
    small.fit(*data, verbose=0)
    small.save(tmp_path / "small.keras")
    expected = small.predict(x, verbose=0)
    loaded = keras.models.load_model(tmp_path / "small.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), expected)
    flatbuffer = tflite.convert(small, scheme="float32")
    np.testing.assert_allclose(tflite.run(flatbuffer, x), expected, atol=1e-4)


def build(make, shape=(12, 16, 2)):
    x = keras.Input(shape)
    return keras.Model(x, make(x))


def head(y):
    return layers.Dense(3)(layers.Flatten()(y))


@pytest.mark.parametrize(
    ("make", "options", "line"),
    [
        (head, {"max_saliency": 1.0}, r"max_saliency of crop_inputs must be in \[0, 1\)"),
        (head, {"step": 0}, "step of crop_inputs must be None or an integer"),
        (head, {"saliency": "gradiant"}, "Unknown saliency 'gradiant'. Did you mean 'gradient'"),
        (head, {"input_name": "left"}, "Unknown image input 'left'"),
        (head, {"loss": None}, "must be compiled with a loss"),
        (lambda x: layers.Conv2D(3, 1, name="out")(x), {}, "Output 'out' .* must not be a map"),
        (
            lambda x: head(layers.Resizing(8, 8, name="fit")(x)),
            {},
            "cannot be followed through Resizing 'fit': it is not known",
        ),
        (
            lambda x: head(layers.LayerNormalization((1, 2, 3), name="norm")(x)),
            {},
            "LayerNormalization 'norm': its axis is",
        ),
        (lambda x: head(layers.PReLU(name="alpha")(x)), {}, "PReLU 'alpha': it has weights for"),
        (lambda x: head(strided(x)), {"step": 1}, "maps with offsets .* meet there; take a larger"),
        (
            lambda x: head(layers.MaxPooling2D(2)(x)),
            {"step": 1},
            "must be whole numbers; take a larger `step`",
        ),
        (
            lambda x: layers.Dense(3)(layers.Concatenate()([layers.Flatten()(x)] * 2)),
            {},
            "flattened maps meet other tensors",
        ),
    ],
)
def test_bad_input_is_refused(make, options, line):
    x = images(only_inside=True)
    x[:, 3] = 1.0  # the crop starts at row 3 where steps are 1
    model = build(make)
    data = x, labels(model, x)
    with pytest.raises(InputError, match=line):
        crop_inputs(model, data, **({"loss": "mse", "max_saliency": 0.0} | options))


def test_models_without_images_and_data_without_labels_are_refused():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    with pytest.raises(InputError, match="must have one image input"):
        crop_inputs(model, (np.ones((2, 4)), np.ones((2, 2))), loss="mse")
    with pytest.raises(InputError, match=r"must be \(x, y\)"):
        crop_inputs(pixelwise(), images(), loss="mse")
    with pytest.raises(InputError, match="must be finite and not zero"):
        crop_inputs(pixelwise(), (images() * 0, np.ones((12, 4))), loss="mse")
