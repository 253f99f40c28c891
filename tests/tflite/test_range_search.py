"""`convert(search_ranges=True)`: ranges that bring the outputs nearer to float's."""

import keras
import numpy as np
import pytest

from tfcompress import tflite
from tfcompress.errors import InputError
from tfcompress.tflite import flatbuffer as fb
from tfcompress.tflite.calibration import Ranges, observed

layers = keras.layers
IMAGES = np.random.default_rng(0).normal(size=(256, 8, 8, 3)).astype(np.float32)


def network(activation):
    """Returns a model whose first layer makes a channel of large values that the next ignores."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, activation="relu", name="first")(inputs)
    x = layers.Conv2D(8, 3, activation="relu", name="second")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(4, activation=activation)(x), name="network")
    for name, place, factor in (("first", np.s_[..., 0], 30), ("second", np.s_[:, :, 0], 0)):
        kernel = np.array(model.get_layer(name).kernel)
        kernel[place] *= factor
        model.get_layer(name).kernel.assign(kernel)
    return model


def error(model, content):
    return float(np.mean((tflite.run(content, IMAGES) - model.predict(IMAGES, verbose=0)) ** 2))


@pytest.mark.parametrize("activation", [None, "softmax"])
def test_outputs_come_nearer(activation):
    model = network(activation)
    plain = tflite.convert(model, "int8", IMAGES, ranges="min_max")
    found = tflite.convert(model, "int8", IMAGES, ranges="min_max", search_ranges=True)
    assert tflite.audit(found).full_integer
    assert error(model, found) < 0.5 * error(model, plain)


def kernels(content):
    model = fb.parse(content)
    tensors = [t for t in model.subgraphs[0].tensors if fb.type_name(t) == "INT8"]
    return [data.tobytes() for t in tensors if (data := fb.data(model, t)) is not None]


def test_the_weights_stay_as_they_are_rounded_without():
    words = {"scheme": "int8", "samples": IMAGES, "rounding": {"stochastic": {"seed": 3}}}
    plain = tflite.convert(network(None), **words)
    found = tflite.convert(network(None), search_ranges=True, **words)
    assert kernels(found) == kernels(plain)
    assert found != plain


def test_a_wider_range_is_that_of_its_tensor_alone():
    content = tflite.convert(network(None), "float32")
    data = int(fb.parse(content).subgraphs[0].inputs[0])
    ranges = observed(content, [data], [IMAGES], learned={99: (-1.0, 1.0)})
    low, high = ranges.of(data, 8)
    wider = ranges.scaled(data, 2.0).scaled(data, 1.5).scaled(99, 2.0)
    assert wider.of(data, 8) == (3 * low, 3 * high)
    assert wider.of(99, 8) == (-1.0, 1.0)
    assert ranges.of(data, 8) == (low, high)
    assert ranges.observed == [data] and Ranges().observed == []


@pytest.mark.parametrize(
    ("scheme", "words"),
    [("dynamic", {}), ("float32", {}), ("float16", {}), ("int4", {"activations": "dynamic"})],
)
def test_schemes_without_such_ranges_are_refused(scheme, words):
    with pytest.raises(InputError, match="search_ranges"):
        tflite.convert(network(None), scheme, IMAGES, search_ranges=True, **words)


def test_samples_are_needed():
    with pytest.raises(InputError, match="needs samples"):
        tflite.convert(network(None), "int8", search_ranges=True)
