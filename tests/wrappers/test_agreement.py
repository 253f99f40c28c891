"""The Keras model computes what its int8 file computes, code by code."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfcompress as tfc
from tests.wrappers.conftest import data, functional
from tfcompress import graph, tflite
from tfcompress.tflite.interpreter import start

layers = keras.layers


def residual_network(x):
    """Convolution, BatchNorm, separate activations, a sum, pooling of the whole map, softmax."""
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(x)))
    y = layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same", use_bias=False)(x))
    x = layers.Activation("relu")(layers.Add()([x, y]))
    x = layers.Flatten()(layers.AveragePooling2D(8)(x))
    return layers.Dense(5, activation="softmax")(layers.Dropout(0.5)(x))


def mobile_network(x):
    """Depthwise and separable convolution, ReLU6, squeeze and excitation, global pooling."""
    x = layers.ZeroPadding2D(1)(x)
    x = layers.DepthwiseConv2D(3, strides=2, depth_multiplier=2)(x)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    x = layers.SeparableConv2D(6, 3, padding="same", activation="relu")(x)
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = layers.Conv2D(6, 1, activation="sigmoid")(gate)
    return layers.Dense(4)(layers.GlobalAveragePooling2D()(layers.Multiply()([x, gate])))


def decoder(x):
    """Transposed convolution, upsampling, concatenation, cropping, tanh."""
    x = layers.Conv2DTranspose(3, 3, strides=2, padding="same", activation="relu")(x)
    y = layers.UpSampling2D()(layers.MaxPooling2D()(x))
    x = layers.Concatenate()([layers.Conv2D(3, 1)(x), layers.Conv2D(2, 1)(y)])
    return layers.Conv2D(2, 3, activation="tanh")(layers.Cropping2D(1)(x))


def signal_network(x):
    """One dimension: convolutions of each kind, pooling, a dense layer on each step."""
    x = layers.Reshape((16, 16))(x)
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv1D(6, 3, padding="causal")(x)))
    x = layers.SeparableConv1D(6, 3, padding="same")(layers.MaxPooling1D()(x))
    x = layers.Conv1DTranspose(4, 3)(layers.DepthwiseConv1D(3)(x))
    return layers.GlobalAveragePooling1D()(layers.Dense(4, activation="relu")(x))


def branches(x):
    """Branches that each start with a ReLU of their own, as in NASNet: TFLite makes them one."""
    x = layers.Conv2D(4, 3)(x)
    a = layers.Conv2D(4, 1)(layers.ReLU()(x))
    b = layers.Conv2D(4, 1)(layers.Activation("relu")(x))
    y = layers.Conv2D(4, 1)(layers.Add()([a, b]))
    a = layers.Conv2D(4, 1)(layers.ReLU()(y))
    b = layers.Conv2D(4, 1)(layers.ReLU(6.0)(y))
    return layers.Add()([a, b])


def activations(x):
    """Functions that a convolution does not take in."""
    for name in ("silu", "hard_sigmoid", "gelu", "hard_silu"):
        x = layers.Conv2D(4, 1, activation=name)(x)
    x = layers.PReLU(shared_axes=[1, 2], alpha_initializer="ones")(layers.Conv2D(4, 1)(x))
    return layers.Conv2D(4, 1, activation="leaky_relu")(x)


def arithmetic(x):
    """Python's operators, keras.ops, sums of three, a mean, scaling of the inputs."""
    x = layers.Rescaling(1 / 3.0, -0.1)(x)
    y, z = layers.Conv2D(4, 1)(x), layers.Conv2D(4, 1)(x)
    x = layers.Add()([keras.ops.relu(y * x - z * 0.7), y, z])
    return layers.Dense(3)(layers.Average()([x, z, y])[:, 1:5])


def lone_batch_norms(x):
    """BatchNorms that no layer absorbs, of images and of vectors."""
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Flatten()(x)))
    return layers.Dense(3)(layers.BatchNormalization()(x))


def dense_network(x):
    """Pooled and concatenated tensors that a BatchNorm reads too; all of several grids."""
    x = layers.MaxPooling2D()(layers.ReLU()(layers.Conv2D(6, 3, padding="same")(x)))
    for pooling in (layers.AveragePooling2D(2), layers.GlobalAveragePooling2D()):
        y = layers.Conv2D(4, 3, padding="same")(layers.ReLU()(layers.BatchNormalization()(x)))
        x = pooling(layers.Concatenate()([x, layers.Multiply()([y, y]), y]))
    return x


# The share of equal codes where XNNPACK rescales with eight bits only: leaky ReLU.
NETWORKS = {
    residual_network: 1.0,
    mobile_network: 1.0,
    decoder: 1.0,
    dense_network: 1.0,
    signal_network: 1.0,
    branches: 1.0,
    activations: 0.98,
    arithmetic: 0.9999,
    lone_batch_norms: 1.0,
}


@pytest.mark.parametrize("build", NETWORKS, ids=lambda build: build.__name__)
def test_the_file_computes_the_same_codes(build):
    x, _ = data()
    model = functional(build)
    expected = model.predict(x, verbose=0)
    quantized = tfc.quantize_aware(model, samples=x)
    assert tfc.wrappers.skipped(quantized) == {}
    outputs = quantized.predict(x, verbose=0)
    assert np.abs(outputs - expected).mean() < 0.06 * np.abs(expected).mean()
    content = tflite.convert(quantized)
    assert tflite.audit(content).full_integer
    difference = np.abs(tflite.run(content, x) - outputs) / step(content)
    assert np.mean(difference < 1.01) >= 0.999
    assert np.mean(difference < 0.01) >= NETWORKS[build]


def step(content):
    (detail,) = start(content).get_output_details()
    return detail["quantization"][0]


def test_channels_of_zeros_and_extreme_biases_agree():
    model = functional(lambda x: layers.Conv2D(4, 3)(layers.Conv2D(6, 3)(x)))
    kernel, bias = (np.array(w) for w in model.layers[1].get_weights())
    kernel[..., 0] = 0.0  # a pruned channel: its bias remains
    kernel[..., 1] *= 1e-4
    bias[:] = [0.5, 3.0, -2.0, 0.0, 1e-4, 0.1]
    model.layers[1].set_weights([kernel, bias])
    x, _ = data()
    quantized = tfc.quantize_aware(model, samples=x)
    content = tflite.convert(quantized)
    difference = np.abs(tflite.run(content, x) - quantized.predict(x, verbose=0))
    assert np.mean(difference < 0.01 * step(content)) >= 0.999


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
def test_the_file_has_each_code_of_a_large_kernel(granularity):
    """Of a million weights a dozen lie so close to a tie that float32 and float64 differ."""
    model = functional(lambda x: layers.Dense(1000, name="dense")(x), (1000,))
    x = np.random.default_rng(0).normal(size=(8, 1000)).astype(np.float32)
    rules = [{"layers": "dense", "granularity": granularity}]
    quantized = tfc.quantize_aware(model, samples=x, rules=rules)
    ((_, codes),) = tflite.stored_kernels(tflite.convert(quantized))
    np.testing.assert_array_equal(codes.T, quantized.get_layer("dense").quantization()[0])


@pytest.mark.parametrize(
    ("rules", "scales"),
    [
        ([], {"conv": 5, "dense": 1}),
        ([{"layers": "dense", "granularity": "per_channel"}], {"conv": 5, "dense": 3}),
        ([{"layers": ".*kernel", "granularity": "per_tensor"}], {"conv": 1, "dense": 1}),
    ],
)
def test_granularity_is_that_of_the_file(rules, scales):
    def build(x):
        x = layers.Conv2D(5, 3, name="conv")(x)
        return layers.Dense(3, name="dense")(layers.Flatten()(x))

    x, _ = data()
    quantized = tfc.quantize_aware(functional(build), samples=x, rules=rules)
    content = tflite.convert(quantized)
    kernels = {
        len(detail["shape"]): len(detail["quantization_parameters"]["scales"])
        for detail in start(content, xnnpack=False).get_tensor_details()
        if detail["dtype"] == np.int8 and detail["shape"][0] in (3, 5)
    }
    assert kernels == {4: scales["conv"], 2: scales["dense"]}
    difference = np.abs(tflite.run(content, x) - quantized.predict(x, verbose=0))
    assert difference.max() < 0.01 * step(content)


@pytest.mark.parametrize("low", [-1.28, -1.0], ids=["xnnpack", "built in"])
def test_products_of_tensors_are_rounded_by_the_kernel_that_gets_them(low):
    def build(x):
        y = layers.Dense(8, name="second")(x)
        return keras.ops.matmul(layers.Dense(8)(x), keras.ops.transpose(y, (0, 2, 1)))

    x, _ = data(shape=(16, 8))
    quantized = tfc.quantize_aware(functional(build, (16, 8)), samples=x)
    quantized.get_layer("second_range").start(low, low + 2.55)
    content = tflite.convert(quantized)
    difference = np.abs(tflite.run(content, x) - quantized.predict(x, verbose=0))
    assert difference.max() < 0.01 * step(content)


@pytest.mark.parametrize("kind", [layers.Add, layers.Subtract])
def test_sums_of_two_tensors_are_rounded_by_the_kernel(kind):
    """Of 200,000 sums a dozen lie so close to a tie that the kernel's factors decide."""

    def build(x):
        return layers.ReLU()(kind()([x * 0.83, layers.Conv2D(8, 1)(x)]))

    x, _ = data(n=100, shape=(16, 16, 8))
    quantized = tfc.quantize_aware(functional(build, (16, 16, 8)), samples=x)
    content = tflite.convert(quantized)
    difference = np.abs(tflite.run(content, x) - quantized.predict(x, verbose=0))
    assert np.sum(difference > 0.01 * step(content)) <= 1


@pytest.mark.parametrize("axis", [(1, 2), -1], ids=str)
def test_means_have_the_float_errors_of_the_kernel(axis):
    """By these scales sums of 463 and 1389 come close to a tie, which the kernel takes them for."""
    inputs = keras.Input((8, 8, 64))
    quantized = tfc.quantize_aware(
        keras.Model(inputs, keras.ops.mean(inputs, axis)), samples=np.ones((8, 8, 8, 64), "float32")
    )
    size, scale = 0.03560810908675194, 0.005788816139101982
    first, last = (n.operation for n in graph.nodes(quantized) if hasattr(n.operation, "start"))
    first.start(-8 * size, 247 * size)
    last.start(-42 * scale, 213 * scale)
    rng = np.random.default_rng(0)
    centers = rng.uniform(0, 25, (200, 1, 1, 1))
    x = (size * (centers + rng.uniform(-8, 8, (200, 8, 8, 64)))).astype(np.float32)
    content = tflite.convert(quantized)
    difference = np.abs(tflite.run(content, x) - quantized.predict(x, verbose=0))
    assert difference.max() < 0.01 * step(content)


@pytest.mark.parametrize("code", range(2, 60, 4))
def test_inverse_roots_are_those_of_the_kernel(code):
    """The output's range ends at the root of a code, so that other roots are ties."""
    inputs = keras.Input((256,))
    quantized = tfc.quantize_aware(
        keras.Model(inputs, keras.ops.rsqrt(inputs)), samples=np.ones((8, 256), np.float32)
    )
    first, last = (n.operation for n in graph.nodes(quantized) if hasattr(n.operation, "start"))
    first.start(0.0, 2.55)
    last.start(0.0, (0.01 * code) ** -0.5)
    x = np.arange(256, dtype=np.float32)[None] / 100
    content = tflite.convert(quantized)
    difference = np.abs(tflite.run(content, x) - quantized.predict(x, verbose=0))
    assert difference.max() < 0.01 * step(content)


@pytest.mark.parametrize("largest", [0.7, 3.1, 8.0, 40.0])
def test_hard_swish_is_that_of_the_kernel_for_every_code(largest):
    inputs = keras.Input((256,))
    x = np.linspace(-largest, largest, 256, dtype=np.float32)[None]
    model = keras.Model(inputs, layers.Activation("hard_silu")(inputs))
    quantized = tfc.quantize_aware(model, samples=x)
    found = quantized.predict(x, verbose=0)
    content = tflite.convert(quantized)
    assert np.abs(tflite.run(content, x) - found).max() < 0.01 * step(content)
    assert len(np.unique(found)) > 90


GRIDS = {  # range: input's code, counted from that of 0, and what its sigmoid times 256 is next to
    (-2.8440089225769043, 2.4307730197906494): "20, 142.5",
    (-128 * 0.012316352, 127 * 0.012316352): "-97, 59.5",
    (-128 * 0.005095566, 127 * 0.005095566): "-54, 110.5",
    (-128 * 0.028302353, 127 * 0.028302353): "37, 189.5",
    (-128 * 0.026252473, 127 * 0.026252473): "29, 174.5",
    (-1.7, 2.4307730197906494): "none",
    (-0.3, 2.4307730197906494): "none, most above 0",
}


@pytest.mark.parametrize("curve", ["sigmoid", "tanh"])
@pytest.mark.parametrize(("low", "high"), GRIDS, ids=GRIDS.values())
def test_curves_are_those_of_the_kernels_tables(curve, low, high):
    """Wherever a code stands: TensorFlow's own sigmoid depends on the place in a tensor."""
    inputs = keras.Input((256, 7))
    model = keras.Model(inputs, layers.Activation(curve)(inputs))
    quantized = tfc.quantize_aware(model, samples=np.ones((8, 256, 7), np.float32))
    first = next(n.operation for n in graph.nodes(quantized) if hasattr(n.operation, "start"))
    first.start(low, high)
    x = np.repeat(np.linspace(low, high, 256, dtype=np.float32)[None, :, None], 7, axis=2)
    content = tflite.convert(quantized)
    difference = np.abs(tflite.run(content, x) - quantized.predict(x, verbose=0))
    assert difference.max() < 0.01 * step(content)


def wide(x):
    """A convolution and a dense layer of so many products that float32 sums would be inexact."""
    weights = keras.initializers.RandomNormal(0.02, 0.05, seed=0)
    options = {"bias_initializer": "ones", "kernel_initializer": weights}
    y = layers.Conv2D(48, 3, padding="same", activation="relu6", **options)(x)
    return layers.MaxPooling2D()(y), layers.Dense(1000, **options)(layers.Flatten()(x))


@pytest.mark.parametrize("words", [{}, {"weight_bits": 5, "weight_ranges": "mse"}], ids=str)
def test_wide_sums_have_each_code_of_the_file(words):
    x = np.random.default_rng(0).uniform(0, 1, (200, 4, 4, 256)).astype(np.float32)
    quantized = tfc.quantize_aware(functional(wide, x.shape[1:]), samples=x, **words)
    content = tflite.convert(quantized)
    found, outputs = tflite.run_integers(content, x), quantized.predict(x, verbose=0)
    for codes, output, detail in zip(found, outputs, tflite.audit(content).outputs, strict=True):
        expected = np.rint(output / detail["scale"]) + detail["zero_point"]
        np.testing.assert_array_equal(codes, expected)


@pytest.mark.parametrize("words", [{}, {"weights": "ternary"}, {"weight_ranges": "mse"}], ids=str)
def test_gradients_at_inference_are_those_of_training(words):
    """Straight through the integers, for a channel of zeros too."""

    def build(x):
        x = layers.Conv2D(4, 3, activation="relu", name="conv")(x)
        y = layers.PReLU()(layers.DepthwiseConv2D(3, padding="same")(x))
        return layers.Dense(3)(layers.Concatenate()([x, layers.Multiply()([x, y])]))

    model, (x, _) = functional(build), data(16)
    kernel, bias = (np.array(w) for w in model.get_layer("conv").get_weights())
    kernel[..., 0] = 0.0
    model.get_layer("conv").set_weights([kernel, bias])
    quantized = tfc.quantize_aware(model, samples=x, **words)
    for quantizer in (layer for layer in quantized.layers if hasattr(layer, "range")):
        quantizer.momentum = None  # the ranges stay, and hold the extremes to the last bit
        quantizer.start(*(1.05 * quantizer.range.numpy()))
    gradients = {}
    for training in (True, False):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(quantized(x, training=training) ** 2)
        variables = [v.value for v in quantized.trainable_variables]
        gradients[training] = tape.gradient(loss, variables)
    for expected, found in zip(gradients[True], gradients[False], strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=0.01 * np.abs(expected).max())


@pytest.mark.parametrize("options", [{}, {"bits": 5, "clip": "fixed"}, {"clip": "learned"}])
def test_xla_rounds_the_kernel_to_the_same_codes(options):
    layer = tfc.wrappers.QuantizedLayer(layers.Dense(500), **options)
    x, grid = np.eye(2000, dtype=np.float32), np.array([0.01, 0.0])
    layer.build(x.shape)
    if options:
        layer.start("min_max")
    expected, _ = layer(tf.constant(x), tf.constant(grid))
    found, _ = tf.function(layer, jit_compile=True)(tf.constant(x), tf.constant(grid))
    np.testing.assert_array_equal(found, expected)
