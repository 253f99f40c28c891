import json
import math
import zlib

import keras
import numpy as np
import pytest
import scipy.sparse

from tfcompress import measure
from tfcompress.errors import InputError


def small_model():
    return keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            keras.layers.Conv2D(6, 3, name="conv"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.DepthwiseConv2D(3, name="depthwise"),
            keras.layers.Flatten(),
            keras.layers.Dense(5, name="dense"),
        ]
    )


def test_a_model_is_counted_by_its_kernels():
    model = small_model()
    kernel = np.zeros((96, 5), np.float32)
    kernel[:10] = 0.25
    kernel[10:20] = -0.5
    model.get_layer("dense").set_weights([kernel, np.ones(5)])

    measures = measure.measure_model(model)

    sizes = {"conv/kernel": 108, "depthwise/kernel": 54, "dense/kernel": 480}
    assert {kernel.path: kernel.size for kernel in measures.kernels} == sizes
    assert measures.parameters == model.count_params() > sum(sizes.values()) == measures.weights
    dense = measures.kernels[-1]
    assert (dense.nonzeros, dense.distinct_values, dense.distinct_nonzero_values) == (100, 3, 2)
    assert dense.sparsity == pytest.approx(380 / 480)
    assert measures.nonzeros == 108 + 54 + 100
    assert measures.sparsity == pytest.approx(380 / 642)
    assert measures.distinct_values == 108  # the untouched convolution


def test_measuring_leaves_the_model_as_it_is():
    model = small_model()
    before = [weight.copy() for weight in model.get_weights()]
    assert measure.measure_model(model) == measure.measure_model(model)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_totals_are_sums_and_go_into_json():
    measures = measure.measure_model(small_model())
    shown = json.loads(json.dumps(measures.to_dict()))
    for form, total in shown["storage"].items():
        assert total == sum(kernel["storage"][form] for kernel in shown["kernels"])
    assert shown["sparsity"] == measures.sparsity
    assert shown["kernels"][0]["shape"] == [3, 3, 2, 6]


def test_csr_bytes_are_those_of_scipy_with_the_narrowest_indices(rng):
    weights = rng.normal(size=(300, 40)).astype(np.float32)
    weights[rng.random(weights.shape) < 0.9] = 0
    matrix = scipy.sparse.csr_array(weights.T)  # a row per output channel
    columns = matrix.indices.astype(np.uint16)  # 300 inputs do not fit into a byte
    pointers = matrix.indptr.astype(np.uint16)
    expected = matrix.data.nbytes + columns.nbytes + pointers.nbytes
    assert measure.measure_kernel("k", weights).storage.csr_bytes == expected


def test_csr_rows_follow_the_output_axes():
    weights = np.ones((3, 3, 8, 1), np.float32)  # depthwise: 8 channels of 9 inputs
    csr = measure.measure_kernel("k", weights, output_axes=(2, 3)).storage.csr_bytes
    assert csr == 72 * (4 + 1) + 9


def test_bitmask_deflate_and_dense_bytes(rng):
    weights = rng.choice(np.float32([0, 0, 0, 1, -1]), size=(7, 11))
    storage = measure.measure_kernel("k", weights).storage
    assert storage.dense_bytes == 4 * 77
    assert storage.bitmask_bytes == len(np.packbits(weights != 0)) + 4 * np.count_nonzero(weights)
    assert storage.deflated_bytes == len(zlib.compress(weights.tobytes(), 9))


def test_entropy_is_exact_for_known_shares():
    weights = np.repeat(np.float32([0, 1, 2, 3]), [512, 256, 128, 128]).reshape(32, 32)
    kernel = measure.measure_kernel("k", weights)
    assert kernel.entropy_bits == pytest.approx(0.5 * 1 + 0.25 * 2 + 2 * 0.125 * 3)
    assert kernel.storage.entropy_bytes == math.ceil(1.75 * 1024 / 8) + 4 * 4


def test_entropy_is_never_above_dense_and_zero_for_a_constant(rng):
    random = measure.measure_kernel("k", rng.normal(size=(50, 50)))
    assert random.storage.entropy_bytes == random.storage.dense_bytes
    constant = measure.measure_kernel("k", np.zeros((4, 4)))
    assert constant.entropy_bits == 0 and math.copysign(1, constant.entropy_bits) == 1
    assert (constant.sparsity, constant.distinct_nonzero_values) == (1, 0)


def test_both_zeros_are_one_value():
    kernel = measure.measure_kernel("k", np.float32([[0.0, -0.0], [1, 1]]))
    assert (kernel.distinct_values, kernel.nonzeros) == (2, 2)


def test_an_unbuilt_model_is_refused():
    with pytest.raises(InputError):
        measure.measure_model(keras.Sequential([keras.layers.Dense(3)]))


@pytest.fixture
def rng():
    return np.random.default_rng(0)
