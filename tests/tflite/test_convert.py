"""Every scheme and kind of model through `convert`, judged by the interpreter."""

import os
import pathlib
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcompress import tflite
from tfcompress.errors import InputError

layers = keras.layers
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.normal(size=(24, 8, 8, 1)).astype(np.float32)


def sequential():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(8, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.DepthwiseConv2D(3),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(5),
        ]
    )


def nested():
    inner = keras.Sequential([layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU()])
    return keras.Sequential(
        [keras.Input((8, 8, 1)), inner, layers.GlobalAveragePooling2D(), layers.Dense(3)]
    )


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.conv = layers.Conv2D(4, 3, activation="relu")
        self.flatten = layers.Flatten()
        self.dense = layers.Dense(3)

    def call(self, x):
        return self.dense(self.flatten(self.conv(x)))


class NeedsValues(Subclassed):
    """Runs on tensors only: `tf.nn` refuses Keras' symbolic inputs."""

    def call(self, x):
        return self.dense(self.flatten(tf.raw_ops.Relu(features=self.conv(x))))


def built(model):
    model(IMAGES[:1])
    return model


@pytest.mark.parametrize("scheme", [s for s in tflite.SCHEMES if s not in ("int4", "mixed")])
def test_each_scheme_computes_the_model(scheme):
    model = sequential()
    kernel = np.array(model.layers[-1].kernel)
    model.layers[-1].kernel.assign(np.where(np.abs(kernel) < 0.1, 0.0, kernel))
    weights = [w.copy() for w in model.get_weights()]
    content = tflite.convert(model, scheme, samples=IMAGES)
    limits = {"float32": 1e-5, "float16": 0.01, "dynamic": 0.1, "int8": 0.1, "int16x8": 0.1}
    limits["sparse"] = limits["float32"]
    audit = tflite.audit(content)
    assert ("DENSIFY" in audit.operators) == (scheme == "sparse")
    assert tflite.compare(model, content, IMAGES).relative_error < limits[scheme]
    assert audit.full_integer == (scheme in ("int8", "int16x8"))
    assert audit.inputs[0]["shape"] == [1, 8, 8, 1]
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("make", [sequential, Subclassed])
def test_the_output_of_any_model_has_its_layers_name(make):
    model = built(make())
    (output,) = tflite.audit(tflite.convert(model, "float32")).outputs
    assert output["name"] == model.layers[-1].name


@pytest.mark.parametrize("make", [nested, Subclassed, NeedsValues])
def test_each_kind_of_model_converts(make):
    model = built(make())
    content = tflite.convert(model, "int8", samples=IMAGES)
    assert tflite.audit(content).full_integer
    assert tflite.compare(model, content, IMAGES).relative_error < 0.1


def test_inputs_and_outputs_keep_order_and_names():
    wide, narrow = keras.Input((6,), name="wide"), keras.Input((4,), name="narrow")
    joined = layers.Concatenate()([wide, narrow])
    outputs = [layers.Dense(3, name="zebra")(joined), layers.Dense(2, name="ant")(joined)]
    model = keras.Model([wide, narrow], outputs)
    samples = [RANDOM.normal(size=(9, 6)), RANDOM.normal(size=(9, 4))]
    content = tflite.convert(model, "float32", samples=samples)
    audit = tflite.audit(content)
    assert [i["name"] for i in audit.inputs] == ["wide", "narrow"]
    assert [o["name"] for o in audit.outputs] == ["zebra", "ant"]
    found = tflite.run(content, samples)
    expected = model([s.astype(np.float32) for s in samples])
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    by_name = {"narrow": samples[1], "wide": samples[0]}
    assert tflite.convert(model, "int8", by_name) == tflite.convert(model, "int8", samples)


def test_mixed_precision_becomes_float32():
    policy = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    try:
        model = nested()
    finally:
        keras.mixed_precision.set_dtype_policy(policy)
    content = tflite.convert(model, "float32")
    assert set(tflite.audit(content).tensors) <= {"FLOAT32", "INT32"}
    assert "CAST" not in tflite.audit(content).operators


def test_casts_of_mixed_precision_become_float32():
    x, k = keras.Input((6,)), keras.Input((2,), dtype="int32")
    half = keras.ops.cast(layers.Dense(4, dtype="mixed_float16")(x), "float32")
    half = keras.ops.concatenate([keras.ops.cast(v, "float16") for v in (half, k)], -1)
    content = tflite.convert(keras.Model([x, k], half), "float32")
    assert set(tflite.audit(content).tensors) <= {"FLOAT32", "INT32"}


def datasets():
    data = tf.data.Dataset.from_tensor_slices((IMAGES, np.zeros(len(IMAGES))))
    yield "batched, labelled", data.batch(5)
    yield "one by one, labelled", data
    yield "batched", data.map(lambda x, y: x).batch(7)
    yield "endless", data.batch(4).repeat()


@pytest.mark.parametrize(("kind", "dataset"), datasets())
def test_datasets_are_samples(kind, dataset):
    model = nested()
    expected = tflite.convert(model, "int8", samples=IMAGES)
    # Ranges depend on the set of samples alone, not on how it is batched.
    assert tflite.convert(model, "int8", samples=dataset.take(200)) == expected


def test_of_long_arrays_samples_come_from_everywhere():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(2)])
    rising = np.repeat(np.arange(4000.0)[:, np.newaxis], 2, axis=1)
    (tensor,) = tflite.audit(tflite.convert(model, "int8", rising)).inputs
    assert tensor["scale"] == pytest.approx(3999 / 255)


def test_inputs_need_as_many_samples():
    ends = [keras.Input((2,)), keras.Input((2,))]
    model = keras.Model(ends, layers.Dense(2)(layers.Add()(ends)))
    with pytest.raises(InputError, match=r"as many rows for each input. Received: \[2000, 1500\]"):
        tflite.convert(model, "int8", [np.ones((2000, 2)), np.ones((1500, 2))])


def test_a_recurrent_model_converts_or_says_what_to_do():
    samples = RANDOM.normal(size=(8, 5, 3)).astype(np.float32)

    def model(unroll):
        return keras.Sequential([keras.Input((5, 3)), layers.LSTM(4, unroll=unroll)])

    for unroll in (False, True):
        lstm = model(unroll)
        content = tflite.convert(lstm, "float32")
        assert tflite.compare(lstm, content, samples).max_abs_error < 1e-5
    with pytest.raises(InputError, match="free of loops for int8: .* a fixed number of steps"):
        endless = keras.Sequential([keras.Input((None, 3)), layers.GRU(4)])
        tflite.convert(endless, "int8", samples)


@pytest.mark.parametrize("words", [{}, {"rounding": "adaround"}])
@pytest.mark.parametrize(
    "recurrent",
    [
        lambda: layers.GRU(6),
        lambda: layers.Bidirectional(layers.LSTM(6)),
        lambda: layers.RNN([layers.SimpleRNNCell(4), layers.LSTMCell(4)], return_sequences=True),
    ],
)
def test_recurrent_layers_of_a_fixed_length_are_unrolled_for_integers(recurrent, words):
    model = keras.Sequential([keras.Input((5, 3)), recurrent(), layers.Dense(2)])
    samples = RANDOM.normal(size=(32, 5, 3)).astype(np.float32)
    content = tflite.convert(model, "int8", samples, **words)
    assert tflite.audit(content).full_integer
    assert tflite.compare(model, content, samples).relative_error < 0.1


def test_tokens_become_16_bit_activations():
    model = keras.Sequential(
        [keras.Input((4,), dtype="int32"), layers.Embedding(9, 6), layers.Dense(3)]
    )
    tokens = RANDOM.integers(0, 9, (20, 4)).astype(np.int32)
    with pytest.raises(InputError, match="must be integers .*--standardize none"):
        tflite.convert(model, "int16x8", tokens / 8)
    content = tflite.convert(model, "int16x8", tokens)
    audit = tflite.audit(content)
    assert audit.full_integer and audit.tensors["INT16"] > 0
    assert tflite.compare(model, content, tokens).relative_error < 0.01


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (None, "needs samples"),
        (IMAGES[:, :4], r"must have the shape \(n, 8, 8, 1\). Received: \(24, 4, 8, 1\)"),
        (np.full_like(IMAGES, np.nan), "must be finite"),
        (np.array(["a"]), "must be numbers"),
        (IMAGES[:0], "must not be empty"),
        ([IMAGES, IMAGES], "each of the model's 1 inputs|must have the shape"),
    ],
)
def test_samples_that_do_not_fit_are_refused(samples, message):
    with pytest.raises(InputError, match=message):
        tflite.convert(nested(), "int8", samples)


def test_an_unknown_scheme_is_answered_with_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'int8'"):
        tflite.convert(nested(), "int9")


def test_weights_that_are_not_finite_are_named():
    model = sequential()
    kernel = model.layers[0].kernel
    kernel.assign(kernel * np.nan)
    with pytest.raises(InputError, match=kernel.path):
        tflite.convert(model, "float32")


def test_a_model_that_needs_more_than_litert_has_is_one_sentence(capfd):
    class Sorted(layers.Layer):
        def call(self, x):
            return tf.raw_ops.Igamma(a=x, x=x)

    model = keras.Sequential([keras.Input((4,)), Sorted()])
    with pytest.raises(InputError, match="no kernel for Igamma") as caught:
        tflite.convert(model, "float32")
    log = str(caught.value).split("log: ")[1].rstrip(")")
    assert "Traceback" in pathlib.Path(log).read_text()
    os.unlink(log)
    assert capfd.readouterr().err == ""


def test_a_layer_without_integer_kernel_stays_float_with_a_warning():
    class Rounded(layers.Layer):
        def call(self, x):
            return tf.round(x)

    model = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(2, 3), Rounded()])
    with pytest.warns(UserWarning, match="not full integer.*ROUND"):
        content = tflite.convert(model, "int8", IMAGES)
    assert "ROUND" in tflite.audit(content).float_operators
    assert "CONV_2D" not in tflite.audit(content).float_operators


def test_layer_normalization_is_full_integer():
    """The converter alone leaves its NEG float."""
    x = np.random.default_rng(0).normal(size=(32, 6, 8)).astype(np.float32)
    inputs = keras.Input((6, 8))
    model = keras.Model(inputs, layers.Dense(3)(layers.LayerNormalization()(inputs)))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        content = tflite.convert(model, "int8", x)
    assert tflite.audit(content).full_integer
    assert tflite.compare(model, content, x).relative_error < 0.1


def test_an_unbuilt_model_is_refused():
    with pytest.raises(InputError, match="must be built"):
        tflite.convert(Subclassed(), "float32")


def test_dynamic_names_the_kernels_that_stay_float():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(400)])
    with pytest.warns(UserWarning, match=r"keeps small kernels.*FULLY_CONNECTED \(32 weights\)$"):
        tflite.convert(model, "dynamic")
