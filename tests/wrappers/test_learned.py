"""Gradients of learned grids: the formulas of the papers, by hand and by finite differences."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcompress import quantization
from tfcompress.wrappers import FakeQuantize, QuantizedLayer


def quantizer(learn, low, high, **options):
    layer = FakeQuantize(learn=learn, **options)
    layer.build((None, 4))
    layer.start(low, high)
    return layer


def gradients(layer, x, upstream):
    x = tf.constant(x, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y, _ = layer(x, training=True)
        loss = tf.reduce_sum(y * upstream)
    return y.numpy(), [g.numpy() for g in tape.gradient(loss, [x, layer.width.value])]


def test_lsq_has_the_gradients_of_the_paper():
    """Esser et al. 2020, equations 3 and 5, with s = 0.5, Qn = 0, Qp = 15, two samples of 4."""
    layer = quantizer("lsq", 0.0, 7.5, bits=4, nonnegative=True)
    x = np.array([[0.6, 1.0, 9.0, 0.2], [3.3, 7.4, 20.0, 0.0]])
    up = np.arange(1.0, 9.0).reshape(2, 4)
    y, (of_x, of_width) = gradients(layer, x, up)
    np.testing.assert_allclose(y, np.clip(np.rint(x / 0.5), 0, 15) * 0.5)
    np.testing.assert_array_equal(of_x, np.where(x <= 7.5, up, 0))
    slope = np.where(x < 7.5, np.rint(x / 0.5) - x / 0.5, 15)
    of_step = (up * slope).sum() / np.sqrt(4 * 15)
    # The variable is 0.1 at s = 0.5: for s to move by its own gradient, it moves 0.2 times as far.
    np.testing.assert_allclose(of_width, 0.2 * of_step, rtol=1e-6)


def test_lsq_of_a_signed_tensor_keeps_the_place_of_zero():
    layer = quantizer("lsq", -2.0, 13.0, bits=4)
    layer.width.assign(0.2)
    y, _ = layer(tf.constant([[-9.0, -3.9, 0.9, 5.0]]), training=True)
    np.testing.assert_array_equal(y, [[-4.0, -4.0, 0.0, 4.0]])


def test_pact_learns_from_what_it_clips():
    """Choi et al. 2018, equation 3: d y / d alpha = 1 where x >= alpha, 0 elsewhere."""
    layer = quantizer("pact", 0.0, 2.0, bits=4, nonnegative=True)
    x = np.array([[0.3, 1.9, 2.5, 7.0]])
    y, (of_x, of_width) = gradients(layer, x, np.array([[1.0, 2.0, 4.0, 8.0]]))
    np.testing.assert_array_equal(of_x, [[1.0, 2.0, 0.0, 0.0]])
    np.testing.assert_allclose(of_width, 12.0 * 0.1 / 2.0, rtol=1e-6)
    np.testing.assert_allclose(y[0, 2:], 2.0)


@pytest.mark.parametrize("learn", ["pact", "lsq"])
def test_gradients_of_what_is_clipped_are_finite_differences(learn):
    x = tf.constant([[3.0, 4.0, -5.0, 8.0]])
    up = tf.constant([[1.0, -2.0, 0.5, 3.0]])
    layer = quantizer(learn, -1.0, 1.55, bits=8)
    _, (_, of_width) = gradients(layer, x, up)

    def loss(share):
        layer.width.assign(0.1 * share)
        return float(tf.reduce_sum(layer(x, training=True)[0] * up))

    difference = (loss(1.05) - loss(0.95)) / (0.1 * 2.55)
    scaling = 1.0 if learn == "pact" else 255 * 255 / np.sqrt(4 * 155)
    np.testing.assert_allclose(of_width, 0.1 / 2.55 * scaling * difference, rtol=1e-4)


@pytest.mark.parametrize("size", [1.0, 1000.0])
@pytest.mark.parametrize(
    ("learn", "of_three_clipped"), [("pact", 3.0), ("lsq", 3 * 255**2 / np.sqrt(4 * 255))]
)
def test_sgd_moves_the_width_itself_and_adam_its_share(learn, of_three_clipped, size):
    x = np.array([[30.0, 40.0, -5.0, 80.0]]) * size
    for optimizer in (keras.optimizers.SGD(1e-5 * size), keras.optimizers.Adam(0.01)):
        layer = quantizer(learn, 0.0, size, nonnegative=True)
        _, (_, gradient) = gradients(layer, x, 1.0)
        optimizer.apply([tf.constant(gradient)], [layer.width])
        moved = float(layer.range[1] - layer._range()[1])
        # One step of Adam makes 0.09 of the variable's 0.1.
        sgd = isinstance(optimizer, keras.optimizers.SGD)
        expected = 1e-5 * of_three_clipped if sgd else 0.1
        assert moved == pytest.approx(expected * size, rel=0.02)


@pytest.mark.parametrize("bits", [4, 8])
def test_what_reads_the_grid_does_not_teach_the_width(bits):
    layer = quantizer("lsq", 0.0, 3.0, bits=bits)
    with tf.GradientTape() as tape:
        _, grid = layer(tf.ones((1, 4)), training=True)
    assert float(grid[0]) == pytest.approx(3.0 / (2**bits - 1))
    assert tape.gradient(grid, layer.width.value) is None


def test_pact_penalizes_the_square_of_its_bound():
    layer = quantizer("pact", 0.0, 3.0, nonnegative=True, penalty=0.1)
    layer(tf.ones((1, 4)), training=True)
    np.testing.assert_allclose(layer.losses, [0.9], rtol=1e-6)
    layer(tf.ones((1, 4)), training=False)
    assert not layer.losses


def dense(kernel, **options):
    layer = QuantizedLayer(keras.layers.Dense(kernel.shape[1], use_bias=False), **options)
    layer.build((None, kernel.shape[0]))
    layer.layer.kernel.assign(kernel)
    return layer


def test_lsq_of_a_kernel_has_one_gradient_per_scale():
    kernel = np.array([[0.3, -1.0], [0.9, 0.26], [-0.13, 4.0]], np.float32)
    layer = dense(kernel, bits=3, clip="learned")
    layer.limit.assign([[0.6, 1.5]])  # steps of 0.2 and 0.5, codes -3 to 3
    with tf.GradientTape() as tape:
        y, _ = layer(tf.eye(3))
        loss = tf.reduce_sum(y)
    of_kernel, of_limit = tape.gradient(loss, [layer.layer.kernel.value, layer.limit.value])
    position = kernel / [0.2, 0.5]
    codes = np.clip(np.rint(position), -3, 3)
    slope = np.where(abs(position) <= 3, codes - position, codes)
    np.testing.assert_allclose(of_limit, 3 * slope.sum(0, keepdims=True) / np.sqrt(9), rtol=1e-5)
    np.testing.assert_array_equal(of_kernel, abs(position) <= 3)
    found, scale, bits = layer.quantization()
    np.testing.assert_array_equal(found, codes)
    np.testing.assert_allclose(scale, [[0.2, 0.5]], rtol=1e-6)
    assert bits == 3


@pytest.mark.parametrize("values", ["binary", "ternary"])
def test_few_values_are_those_of_the_array_functions(values):
    kernel = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    layer = dense(kernel, weights=values)
    with tf.GradientTape() as tape:
        y, _ = layer(tf.eye(50))
        loss = tf.reduce_sum(y**2)
    codes, grid = getattr(quantization, values)(kernel, (1,))
    found, scale, _ = layer.quantization()
    np.testing.assert_array_equal(found, codes)
    np.testing.assert_allclose(scale, grid.scale, rtol=1e-6)
    np.testing.assert_allclose(y, grid.dequantize(codes), rtol=1e-6)
    # Straight through: the gradient of the kernel is that of its values.
    np.testing.assert_array_equal(tape.gradient(loss, layer.layer.kernel.value), 2 * y)
