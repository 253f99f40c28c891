"""Layers that become several operators in an integer file compute there what Keras trained."""

import keras
import numpy as np
import pytest
from keras.src.applications.inception_resnet_v2 import CustomScaleLayer

import tfcompress as tfc
from tests.wrappers.conftest import compile_and_fit, data, functional
from tfcompress import graph, tflite
from tfcompress.wrappers.canonical import canonical
from tfcompress.wrappers.functions import FUNCTIONS

layers = keras.layers
SEQUENCE, SHORT, IMAGE = (6, 8), (3, 8), (8, 8, 4)


def transformer(x):
    """Two blocks' worth of what a transformer has: causal and grouped attention, two norms."""
    y = layers.LayerNormalization()(x)
    x = layers.Add()([x, layers.MultiHeadAttention(2, 4, dropout=0.1)(y, y, use_causal_mask=True)])
    y = layers.RMSNormalization()(x)
    x = layers.Add()([x, layers.GroupQueryAttention(4, 4, 2)(y, y)])
    y = layers.Dense(12, activation="gelu")(layers.LayerNormalization()(x))
    x = layers.Add()([x, layers.Dense(8)(y)])
    return layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling1D()(x))


def recurrent(x):
    """An LSTM in both directions, a GRU of all steps, a dense layer on each step."""
    x = layers.Bidirectional(layers.LSTM(4, return_sequences=True), merge_mode="sum")(x)
    x = layers.GRU(4, return_sequences=True)(x)
    x = layers.TimeDistributed(layers.Dense(4, activation="relu"))(x)
    return layers.Dense(3)(layers.SimpleRNN(4)(x))


def convnext(x):
    y = layers.LayerNormalization(epsilon=1e-6)(layers.DepthwiseConv2D(3, padding="same")(x))
    y = layers.EinsumDense("abcd,de->abce", output_shape=(None, None, 4), bias_axes="e")(
        layers.Dense(8, activation="gelu")(y)
    )
    return layers.GlobalAveragePooling2D()(layers.GroupNormalization(2)(layers.Add()([x, y])))


def mobile(x):
    """MobileNetV3 and EfficientNet: gates, hard swish, swish, ReLU up to other limits."""
    x = layers.Rescaling(1 / 2.0)(x)
    y = layers.Activation("hard_silu")(layers.BatchNormalization()(layers.Conv2D(4, 1)(x)))
    gate = layers.Conv2D(2, 1, activation="silu")(layers.GlobalAveragePooling2D(keepdims=True)(y))
    gate = layers.ReLU(6.0)(layers.Conv2D(4, 1)(gate) + 3.0) * (1.0 / 6.0)
    x = layers.Maximum()([x, layers.Multiply()([y, gate])])
    return layers.Dense(3)(layers.Flatten()(layers.ReLU(1.0)(layers.Conv2D(2, 3)(x))))


def smooth(x):
    """Activations that TFLite has no operator for."""
    for name in ("elu", "softplus", "mish", "hard_tanh", "softsign"):
        x = layers.Dense(6, activation=name)(x)
    return layers.Softmax(axis=1)(x)


# The share of equal codes: a tensor that a maximum or a minimum brings onto another grid is rounded
# twice in the file, which may move a code by one.
NETWORKS = {
    transformer: (SEQUENCE, 0.98),
    recurrent: (SHORT, 0.9),
    convnext: (IMAGE, 0.98),
    mobile: (IMAGE, 0.75),
    smooth: (SEQUENCE, 0.75),
}


@pytest.mark.parametrize("build", NETWORKS, ids=lambda build: build.__name__)
def test_the_file_computes_the_same_codes(build):
    shape, equal = NETWORKS[build]
    x, _ = data(48, shape)
    quantized = tfc.quantize_aware(functional(build, shape), samples=x)
    assert tfc.wrappers.skipped(quantized) == {}
    agrees(quantized, x, equal)


def agrees(quantized, x, equal=0.98):
    expected = keras.tree.flatten(quantized.predict(x, batch_size=48, verbose=0))  # one shape
    content = tflite.convert(quantized)
    audit = tflite.audit(content)
    assert audit.full_integer
    found = keras.tree.flatten(tflite.run(content, keras.tree.flatten(x)))
    for output, want, detail in zip(found, expected, audit.outputs, strict=True):
        difference = np.abs(output - want) / detail["scale"]
        assert np.mean(difference < 1.01) >= 0.999
        assert np.mean(difference < 0.01) >= equal
    return audit


def test_nested_shared_embedded_with_two_inputs_and_outputs(tmp_path):
    tokens, vector = keras.Input((6,), dtype="int32"), keras.Input((8,))
    encoder = keras.Sequential(
        [keras.Input((6, 8)), layers.LayerNormalization(), layers.Dense(8, activation="relu")]
    )
    embedded = layers.Embedding(10, 8)(tokens)
    pooled = layers.GlobalAveragePooling1D()(encoder(encoder(embedded)))
    model = keras.Model(
        [tokens, vector],
        [layers.Dense(3)(pooled), layers.Dot(1)([pooled, vector])],
    )
    random = np.random.default_rng(0)
    x = [random.integers(0, 10, (48, 6)).astype("int32"), data(48, (8,))[0]]
    quantized = tfc.quantize_aware(model, samples=x)
    assert tfc.wrappers.skipped(quantized) == {}
    audit = agrees(quantized, x)
    assert audit.inputs[0]["dtype"] == "int32" and "GATHER" in audit.operators
    quantized.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for a, b in zip(quantized.predict(x, verbose=0), loaded.predict(x, verbose=0), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_unrolled_network_trains_and_its_weights_are_few():
    x, y = data(64, SHORT)
    model = functional(lambda x: layers.Dense(8)(layers.LSTM(4)(x)), SHORT)
    quantized = tfc.quantize_aware(model, samples=x)
    kernels = [w for w in quantized.trainable_weights if w.name == "kernel"]
    assert sorted(tuple(w.shape) for w in kernels) == [(4, 8), (4, 16), (8, 16)]
    losses = compile_and_fit(quantized, x, y, epochs=3).history["loss"]
    assert losses[-1] < losses[0]
    agrees(quantized, x, 0.9)


EXACT = {
    "einsum to heads": (
        SEQUENCE,
        lambda x: layers.EinsumDense("abc,cde->abde", output_shape=(None, 2, 4), bias_axes="d")(x),
    ),
    "einsum over steps": (
        SEQUENCE,
        lambda x: layers.EinsumDense("abc,bd->acd", output_shape=(8, 3), activation="tanh")(x),
    ),
    "gru, reset before": (SHORT, lambda x: layers.GRU(3, reset_after=False)(x)),
    "stacked cells": (
        SHORT,
        lambda x: layers.RNN([layers.LSTMCell(3), layers.GRUCell(2)], return_sequences=True)(x),
    ),
    "backwards": (SHORT, lambda x: layers.LSTM(3, go_backwards=True, return_sequences=True)(x)),
    "both directions": (
        SHORT,
        lambda x: layers.Bidirectional(layers.GRU(3, return_sequences=True))(x),
    ),
    "crossed attention": (
        SEQUENCE,
        lambda x: layers.MultiHeadAttention(2, 4, value_dim=3, output_shape=5)(x, x[:, 1:4]),
    ),
    "grouped causal attention": (
        SEQUENCE,
        lambda x: layers.GroupQueryAttention(3, 4, 2)(x, x, use_causal_mask=True),
    ),
    "scaled attention": (SEQUENCE, lambda x: layers.Attention(use_scale=True)([x, x[:, :4]])),
    "additive attention": (SEQUENCE, lambda x: layers.AdditiveAttention()([x, x])),
    "norm over two axes": (IMAGE, lambda x: layers.LayerNormalization(axis=[-2, -1])(x)),
    "unit norm": (SEQUENCE, lambda x: layers.UnitNormalization()(x)),
    "statistics": (SEQUENCE, lambda x: layers.Normalization(mean=0.5, variance=2.0)(x)),
    "pooled volume": (
        (4, 6, 6, 3),
        lambda x: layers.MaxPooling3D(2)(layers.AveragePooling3D((1, 2, 2), padding="same")(x)),
    ),
    "convolution of each step": (
        (3, 6, 6, 2),
        lambda x: layers.TimeDistributed(layers.Conv2D(3, 3, activation="selu"))(x),
    ),
    "products": (SEQUENCE, lambda x: layers.Dot((2, 2), normalize=True)([x, x[:, :3]])),
    "scaled sum": (IMAGE, lambda x: CustomScaleLayer(0.17)([x, layers.Conv2D(4, 1)(x)])),
    "center crop": (IMAGE, lambda x: layers.CenterCrop(5, 4)(x)),
}


@pytest.mark.parametrize("name", EXACT)
def test_the_rewriting_is_exact_in_float(name):
    shape, build = EXACT[name]
    model = functional(build, shape)
    x, _ = data(4, shape)
    rewritten, _ = canonical(graph.functional(model))
    np.testing.assert_allclose(rewritten(x), model(x), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_activations_are_exact_in_float(name):
    model = functional(lambda x: layers.Activation(name)(x), SEQUENCE)
    x = 3 * data(16, SEQUENCE)[0]
    rewritten, _ = canonical(graph.functional(model))
    assert not any(isinstance(layer, layers.Activation) for layer in rewritten.layers)
    np.testing.assert_allclose(rewritten(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda x: layers.LSTM(3)(layers.Masking()(x)), "masks that come with the data"),
        (lambda x: layers.MultiHeadAttention(2, 4)(x, x, attention_mask=x[:, :, :6] > 0), "masks"),
        (lambda x: layers.Attention(score_mode="concat")([x, x]), "the scores 'concat'"),
        (lambda x: layers.ReLU(threshold=0.5)(x), "jumps there"),
        (lambda x: layers.Conv3D(2, 1)(layers.Reshape((6, 2, 2, 2))(x)), "CONV_3D"),
        (
            lambda x: layers.EinsumDense("abc,bcd->abd", output_shape=(6, 2))(x),
            "differs along an axis of its inputs",
        ),
    ],
)
def test_what_stays_float_says_why(build, reason):
    reasons = tfc.wrappers.skipped(tfc.quantize_aware(functional(build, SEQUENCE)))
    assert any(reason in text for text in reasons.values())
