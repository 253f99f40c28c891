"""Average pooling over a whole map is a mean, with integers of its own in a file."""

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tfcompress import graph, pooling, tflite

layers = keras.layers


def model_of(build, shape):
    inputs = keras.Input(shape)
    return keras.Model(inputs, build(inputs))


def classes(model):
    return [type(layer).__name__ for layer in model.layers[1:]]


@pytest.mark.parametrize(
    ("build", "shape", "mean"),
    [
        (layers.AveragePooling1D(6), (6, 3), "GlobalAveragePooling1D"),
        (layers.AveragePooling2D((4, 5)), (4, 5, 3), "GlobalAveragePooling2D"),
        (layers.AveragePooling2D(7, padding="same"), (4, 5, 3), "GlobalAveragePooling2D"),
        (layers.AveragePooling3D((2, 3, 2)), (2, 3, 2, 3), "GlobalAveragePooling3D"),
    ],
)
def test_it_computes_the_same_under_the_same_name(build, shape, mean):
    model = model_of(build, shape)
    new = pooling.with_means(graph.functional(model))
    assert classes(new) == [mean]
    assert [layer.name for layer in new.layers[1:]] == [build.name]
    x = np.random.default_rng(0).normal(size=(4, *shape)).astype(np.float32)
    np.testing.assert_allclose(new(x), model(x), atol=1e-6)


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (layers.AveragePooling2D(2), (4, 4, 3)),
        (layers.AveragePooling2D(3), (4, 4, 3)),  # a map of one place, which is not of the whole
        (layers.AveragePooling2D(4, strides=2, padding="same"), (4, 4, 3)),
        (layers.AveragePooling2D(4), (None, 4, 3)),
        (layers.AveragePooling2D(4, data_format="channels_first"), (3, 4, 4)),
        (lambda x: layers.AveragePooling1D(6)(layers.Masking()(x)), (6, 3)),
        (layers.MaxPooling2D(4), (4, 4, 3)),
    ],
)
def test_other_pooling_stays(build, shape):
    model = graph.functional(model_of(build, shape))
    assert pooling.with_means(model) is model


def test_a_pooling_of_several_calls_becomes_several():
    inputs = [keras.Input((4, 4, 2)), keras.Input((4, 4, 2))]
    pool = layers.AveragePooling2D(4, name="pool")
    model = keras.Model(inputs, layers.Subtract()([pool(x) for x in inputs]))
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 4, 2)).astype(np.float32)
    new = pooling.with_means(graph.functional(model))
    assert classes(new).count("GlobalAveragePooling2D") == 2
    np.testing.assert_allclose(new([*x]), model([*x]), atol=1e-6)


@pytest.mark.parametrize("words", [{}, {"ranges": "min_max"}])
def test_an_integer_file_does_not_round_means_to_the_grid_of_the_map(words):
    # One place in sixteen is up to 1, the others are 0: means of at most 1/16, 16 codes of the map.
    model = model_of(layers.AveragePooling2D(4), (4, 4, 8))
    rng = np.random.default_rng(0)
    x = np.zeros((64, 16, 8), np.float32)
    x[:, 5] = rng.uniform(size=(64, 8))
    x = x.reshape(64, 4, 4, 8)
    content = tfc.convert(model, samples=x, **words)
    assert "MEAN" in tfc.audit(content).operators
    error = np.abs(tflite.run(content, x) - np.asarray(model(x)))
    assert error.max() < 0.6 / 255 / 16 + 0.6 / 255 / 16  # half a code of the map, and of means


@pytest.fixture(scope="module")
def images():
    x = np.random.default_rng(0).normal(size=(64, 4, 4, 8))
    return np.maximum(x, 0).astype(np.float32)


@pytest.fixture(scope="module")
def classifier():
    def build(x):
        return layers.Dense(3)(layers.Flatten()(layers.AveragePooling2D(4, name="pool")(x)))

    return model_of(build, (4, 4, 8))


def test_training_simulates_the_mean(classifier, images):
    quantized = tfc.quantize_aware(classifier, samples=images)
    content = tfc.convert(quantized)
    assert "MEAN" in tfc.audit(content).operators
    np.testing.assert_allclose(tflite.run(content, images), quantized(images), atol=1e-6)


def test_the_report_compares_the_mean_with_the_pooling(classifier, images):
    report = tfc.quantization_report(classifier, tfc.convert(classifier, samples=images), images)
    assert not report.unmatched
    assert "MEAN" in {layer.operator.split()[1] for layer in report.layers if layer.path == "pool"}
