"""Kernels as tables and indices inside the file: equal outputs, fewer bytes, or a reason."""

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tfcompress import tflite
from tfcompress.errors import InputError

layers = keras.layers
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.normal(size=(16, 8, 8, 4)).astype(np.float32)


def model(values):
    model = keras.Sequential(
        [keras.Input((8, 8, 4)), layers.Conv2D(64, 3), layers.Flatten(), layers.Dense(16)]
    )
    for layer in (model.layers[0], model.layers[2]):
        kernel, bias = layer.get_weights()
        kernel = RANDOM.choice(np.linspace(-0.5, 0.5, values), kernel.shape)
        kernel[..., 0, :] = 0.5  # each output channel gets the same scale
        layer.set_weights([kernel, RANDOM.normal(size=bias.shape)])
    return model


@pytest.mark.parametrize(("scheme", "bits"), [("int8", 4.0), ("float32", 4.0)])
def test_sixteen_values_take_four_bits_and_compute_the_same(scheme, bits):
    content = tfc.convert(model(16), scheme, IMAGES)
    result = tfc.codebook_flatbuffer(content)
    assert len(result.content) == result.bytes_after < result.bytes_before == len(content)
    small = tflite.run_integers(result.content, IMAGES, xnnpack=False)
    np.testing.assert_array_equal(small, tflite.run_integers(content, IMAGES, xnnpack=False))
    assert set(result.kernels) == (
        {"0 CONV_2D", "2 FULLY_CONNECTED"} if scheme == "float32" else set(result.kernels)
    )
    assert "2 FULLY_CONNECTED" in result.kernels
    weights = 6 * 6 * 64 * 16
    table = 16 * 16 * 2 * (4 if scheme == "float32" else 1)
    assert result.kernels["2 FULLY_CONNECTED"] == bits + 8 * table / weights
    assert result.latency_ratio > 0 and "bits per weight" in str(result)
    assert result.to_dict()["bytes_after"] == len(result.content)
    audit = tfc.audit(result.content)
    assert audit.operators["GATHER"] == audit.operators["CAST"] == len(result.kernels)


def test_a_small_kernel_needs_no_table_of_pairs():
    small = keras.Sequential([keras.Input((24,)), layers.Dense(24)])
    small.layers[0].kernel.assign(RANDOM.choice(np.linspace(-1, 1, 16), (24, 24)))
    result = tfc.codebook_flatbuffer(tfc.convert(small, "float32"))
    assert result.kernels == {"0 FULLY_CONNECTED": 8 + 16 * 32 / 576}
    assert result.bytes_after < 0.7 * result.bytes_before


def test_what_gets_no_smaller_is_refused_with_the_reason():
    fresh = keras.Sequential([keras.Input((8, 8, 4)), layers.Flatten(), layers.Dense(16)])
    content = tfc.convert(fresh, "float32")
    with pytest.raises(InputError, match="its kernel has 40.. values"):
        tfc.codebook_flatbuffer(content)
    with pytest.raises(InputError, match="take no fewer bytes"):
        tfc.codebook_flatbuffer(tfc.convert(fresh, "int8", IMAGES))
    with pytest.raises(InputError, match="TFL3"):
        tfc.codebook_flatbuffer(b"nothing")
