"""The words of `quantize_aware`: bits, ranges, learning, kernels of few values."""

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tests.wrappers.conftest import compile_and_fit, data, functional
from tests.wrappers.test_agreement import mobile_network, residual_network, step
from tfcompress import tflite
from tfcompress.tflite import flatbuffer as fb
from tfcompress.wrappers import FakeQuantize, QuantizedLayer

layers = keras.layers


def small(x):
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(6, 3, name="conv")(x)))
    return layers.Dense(4, name="head")(layers.GlobalAveragePooling2D()(x))


def pointwise(x):
    x = layers.Conv2D(8, 1, activation="relu")(x)
    return layers.Dense(4)(layers.GlobalAveragePooling2D()(x))


def wrapped(model):
    return {x.name: x for x in model.layers if isinstance(x, QuantizedLayer)}


def quantizers(model):
    return {x.name: x for x in model.layers if isinstance(x, FakeQuantize)}


def file_codes(content):
    """The integer kernels of a file, by sorted values: the layouts differ from Keras'."""
    model = fb.parse(content)
    kernels = []
    for tensor in model.subgraphs[0].tensors:
        found = fb.data(model, tensor)
        if found is not None and fb.type_name(tensor) == "INT8" and found.ndim > 1:
            kernels.append(sorted(found.ravel().tolist()))
    return kernels


WORDS = [
    {"bits": 4, "learn": "lsq"},
    {"bits": 6, "learn": "pact"},
    {"weights": "binary"},
    {"weights": "ternary", "ranges": "mse"},
    {"weight_bits": 5, "weight_ranges": "mse", "ranges": {"percentile": {"percent": 99.0}}},
]


@pytest.mark.parametrize("words", WORDS, ids=str)
@pytest.mark.parametrize("build", [residual_network, mobile_network])
def test_the_file_holds_the_codes_that_were_trained(build, words):
    x, _ = data(64)
    quantized = tfc.quantize_aware(functional(build), samples=x, **words)
    content = tflite.convert(quantized)
    trained = [sorted(x.quantization()[0].ravel().tolist()) for x in wrapped(quantized).values()]
    assert sorted(file_codes(content)) == sorted(trained)
    outputs = quantized.predict(x, verbose=0)
    difference = np.abs(tflite.run(content, x) - outputs) / step(content)
    assert np.mean(difference < 1.01) >= 0.999


@pytest.mark.parametrize("learn", ["lsq", "pact"])
def test_widths_are_trained_and_reach_the_file(learn, tmp_path):
    x, y = data(64)
    quantized = tfc.quantize_aware(functional(small), bits=4, learn=learn, samples=x)
    before = {name: float(q.width) for name, q in quantizers(quantized).items()}
    compile_and_fit(quantized, x, y, jit_compile=learn == "lsq")
    assert all(float(q.width) != before[name] for name, q in quantizers(quantized).items())
    quantized.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), quantized.predict(x, verbose=0))
    content = tflite.convert(loaded)
    difference = np.abs(tflite.run(content, x) - loaded.predict(x, verbose=0))
    assert np.mean(difference < 0.01 * step(content)) >= 0.999


def test_rules_give_each_layer_its_bits():
    x, _ = data(64)
    rules = [{"layers": "head/.*", "bits": 16}, {"layers": "conv", "weights": "ternary"}]
    quantized = tfc.quantize_aware(functional(small), samples=x, ranges="mse", rules=rules)
    assert {n: q.quantization()[2] for n, q in wrapped(quantized).items()} == {"conv": 2, "head": 8}
    assert quantizers(quantized)["head_range"].bits == 16
    assert {q.bits for name, q in quantizers(quantized).items() if name != "head_range"} == {8}
    with pytest.raises(tfc.InputError, match="must be mixed: 'head_range' .* more than 8 bits"):
        tflite.convert(quantized)
    content = tflite.convert(quantized, scheme="mixed", samples=x)
    np.testing.assert_allclose(tflite.run(content, x), quantized.predict(x, verbose=0), atol=0.05)


@pytest.mark.parametrize("learn", [None, "pact"])
def test_more_than_eight_bits_end_where_their_range_does(learn):
    """int16 has room beyond the range of a narrower grid, in which the file must not compute."""
    x, y = data(64)
    words = {"bits": 10, "learn": learn, "ranges": {"percentile": {"percent": 80.0}}}
    quantized = tfc.quantize_aware(functional(small), samples=x, **words)
    compile_and_fit(quantized, x, y)
    content = tflite.convert(quantized, "mixed")
    expected = quantized.predict(3 * x, verbose=0)
    np.testing.assert_allclose(tflite.run(content, 3 * x), expected, atol=2e-3)
    low, high, _ = quantizers(quantized)["head_range"].quantization()
    assert -low == high == pytest.approx(max(abs(expected.min()), expected.max()), rel=0.5)


def test_rules_speak_of_layers_without_kernels_too():
    x, _ = data(64)
    model = functional(small)
    relu = next(layer.name for layer in model.layers if isinstance(layer, layers.ReLU))
    rules = [{"layers": relu, "activation_bits": 4}, {"layers": ".*", "weight_bits": 5}]
    quantized = tfc.quantize_aware(model, samples=x, rules=rules)
    assert quantizers(quantized)[f"{relu}_range"].bits == 4
    assert {q.quantization()[2] for q in wrapped(quantized).values()} == {5}
    content = tflite.convert(quantized)
    np.testing.assert_allclose(
        tflite.run(content, x), quantized.predict(x, verbose=0), atol=1.01 * step(content)
    )
    skipping = [{"layers": relu, "skip": "it is slow"}]
    quantized = tfc.quantize_aware(model, samples=x, rules=skipping)
    assert tfc.wrappers.skipped(quantized) == {relu: "it is slow"}


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ("float32", "must be int8, int4 or mixed: quantize_aware made it"),
        ("float16", "must be int8, int4 or mixed"),
        ("dynamic", "must be int8, int4 or mixed"),
        ("sparse", "must be int8, int4 or mixed"),
        ("int16x8", "trained with activations of up to 8 bits"),
    ],
)
def test_schemes_that_are_not_those_of_the_training_are_refused(scheme, message):
    quantized = tfc.quantize_aware(functional(small), samples=X)
    with pytest.raises(tfc.InputError, match=message) as caught:
        tflite.convert(quantized, scheme, X)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["float32", "float16", "dynamic", "int4", "mixed"])
def test_every_scheme_holds_kernels_that_were_trained_alone(scheme):
    quantized = tfc.quantize_aware(functional(small), quantize="weights", weight_bits=4)
    content = tflite.convert(quantized, scheme, X)
    found = tflite.audit(content)
    kinds = {"float32": "FLOAT32", "float16": "FLOAT16", "dynamic": "INT8"}
    assert found.tensors.get(kinds.get(scheme, "INT4"))
    kernels = [weight for weight in found.weights if len(weight.shape) > 1]
    per_channel = quantized.get_layer("conv").quantization()[0].size  # float values: codes x scale
    assert all(w.distinct <= (15 if scheme[:3] in ("dyn", "int", "mix") else per_channel)
               for w in kernels)  # fmt: skip
    difference = np.abs(tflite.run(content, X) - quantized.predict(X, verbose=0)).max()
    assert difference < {"float32": 1e-5, "float16": 1e-2}.get(scheme, 0.2)


def test_sixteen_bits_everywhere_are_int16x8():
    quantized = tfc.quantize_aware(functional(small), samples=X, bits=16)
    content = tflite.convert(quantized, "int16x8")
    assert tflite.audit(content).full_integer and tflite.audit(content).tensors["INT16"]
    np.testing.assert_allclose(
        tflite.run(content, X), quantized.predict(X, verbose=0), atol=3 * step(content)
    )


def test_words_that_choose_integers_have_no_effect_on_learned_ones_and_it_is_said():
    quantized = tfc.quantize_aware(functional(small), samples=X)
    plain = file_codes(tflite.convert(quantized))
    with pytest.warns(UserWarning, match="quantize_aware.*: rounding has no effect on them"):
        assert file_codes(tflite.convert(quantized, "mixed", X, rounding="adaround")) == plain
    rules = [{"layers": "head", "granularity": "per_channel", "rounding": "truncate"}]
    with pytest.warns(UserWarning, match="rounding has no effect"):
        assert file_codes(tflite.convert(quantized, "int8", X, rules=rules)) == plain
    with pytest.warns(UserWarning, match="more bits than its file's kernels.*: head"):
        tflite.convert(quantized, "int4", X)


def test_a_pointwise_kernel_of_four_bits_stays_so_in_a_mixed_file():
    quantized = tfc.quantize_aware(functional(pointwise), samples=X, bits=4)
    kernels = tflite.audit(tflite.convert(quantized, "mixed")).weights
    assert [w.dtype for w in kernels if len(w.shape) > 1] == ["INT4", "INT4"]


def test_inputs_and_outputs_of_the_model_keep_eight_bits():
    quantized = tfc.quantize_aware(functional(small), bits=4)
    bits = {name: q.bits for name, q in quantizers(quantized).items()}
    assert bits.pop("head_range") == 8 and sorted(bits.values()) == [4, 4, 8]


def test_ranges_that_clip_stay_and_others_follow():
    x, y = data(64)
    x[0, 0, 0, 0] = 100.0
    for ranges, stays in (("mse", True), ("percentile", True), ("ema", False), (None, False)):
        quantized = tfc.quantize_aware(functional(small), samples=x, ranges=ranges)
        (first,) = [q for n, q in quantizers(quantized).items() if n.startswith("input")]
        before = np.array(first.range)
        assert (before[1] < 90) == (ranges == "percentile") or ranges in ("mse", "ema")
        compile_and_fit(quantized, 2 * x, y)
        assert stays == np.array_equal(first.range, before)


def test_kernels_alone_or_activations_alone():
    x, _ = data(64)
    model = functional(small)
    kernels = tfc.quantize_aware(model, quantize="weights", weights="ternary")
    assert not quantizers(kernels) and len(wrapped(kernels)) == 2
    content = tflite.convert(kernels, samples=x)
    assert sorted(file_codes(content)) == sorted(
        sorted(q.quantization()[0].ravel().tolist()) for q in wrapped(kernels).values()
    )
    difference = np.abs(tflite.run(content, x) - kernels.predict(x, verbose=0))
    assert difference.mean() < 2 * step(content)
    activations = tfc.quantize_aware(model, quantize="activations", samples=x)
    assert quantizers(activations) and not wrapped(activations)


def test_zeros_of_a_pruned_kernel_stay_with_learned_steps():
    x, y = data(64)
    quantized = tfc.quantize_aware(functional(small), bits=4, learn="lsq", samples=x)
    prune = tfc.PruneOnSchedule({"constant": {"end": 0.5}})
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    quantized.compile("adam", loss=loss)
    cluster = tfc.ClusterOnSchedule(tfc.clustering.KMeans(clusters=4), begin_step=4)
    quantized.fit(x, y, batch_size=16, epochs=2, verbose=0, callbacks=[prune, cluster])
    for layer in wrapped(quantized).values():
        kernel = np.array(layer.layer.kernel)
        assert np.mean(kernel == 0) == 0.5 and len(np.unique(kernel)) <= 5
        assert np.all(layer.quantization()[0][kernel == 0] == 0)


def test_a_dead_activation_is_named():
    model = functional(small)
    model.get_layer("conv").set_weights([np.zeros((3, 3, 4, 6)), np.full(6, -9.0)])
    model.layers[2].set_weights([np.ones(6), np.zeros(6), np.zeros(6), np.ones(6)])
    x, _ = data(32)
    with pytest.warns(UserWarning, match="re_lu.*_range"):
        tfc.quantize_aware(model, samples=x)
    with pytest.raises(tfc.InputError, match="re_lu.*must not be 0 for all samples"):
        tfc.quantize_aware(model, samples=x, ranges="mse")


X = data(16)[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"bits": 1}, r"bits of quantize_aware must be a whole number in \[2, 16\].*bits=1"),
        ({"weight_bits": 9}, r"in \[2, 8\]"),
        ({"bits": 8, "weight_bits": 4}, "bits=8 stands for both"),
        ({"weights": "binary", "weight_bits": 8}, "kernels that are binary.*weight_bits=8"),
        ({"rules": [{"layers": "conv", "bits": 4, "weights": "binary"}]}, "Rule for 'conv/kernel'"),
        ({"weights": "binry"}, "Did you mean 'binary'"),
        ({"learn": "lqs"}, "Did you mean 'lsq'"),
        ({"ranges": "msee"}, "Did you mean 'mse'"),
        ({"quantize": "weight"}, "Did you mean 'weights'"),
        ({"quantize": "weights", "learn": "pact"}, "quantize='weights'.*learn='pact'"),
        ({"quantize": "weights", "ranges": "mse"}, "speak of activations"),
        ({"quantize": "activations", "weight_bits": 4}, "speak of kernels"),
        ({"learn": "lsq", "samples": None}, "samples of quantize_aware must be given"),
        ({"ranges": "mse", "samples": None}, "samples of quantize_aware must be given"),
        ({"penalty": 0.1}, "needs learn='pact'"),
        ({"penalty": -1.0, "learn": "pact"}, "must be at least 0"),
        ({"rules": [{"layers": "conv", "bit": 4}]}, "Did you mean 'bits'"),
        ({"rules": [{"layers": "re_lu.*", "weight_bits": 4}]}, "the layer has none"),
        ({"rules": [{"layers": "batch.*", "activation_bits": 4}]}, "must be `skip`"),
        ({"rules": [{"layers": "relu", "bits": 4}]}, "matches no layer: 'relu'. The nearest"),
    ],
)
def test_bad_words_are_one_clear_line(words, message):
    with pytest.raises(tfc.InputError, match=message) as caught:
        tfc.quantize_aware(functional(small), **({"samples": X} | words))
    assert "\n" not in str(caught.value)


def test_a_kernel_with_zeros_cannot_be_binary():
    model = functional(small)
    kernel, bias = model.get_layer("head").get_weights()
    kernel[0, 0] = 0.0
    model.get_layer("head").set_weights([kernel, bias])
    with pytest.raises(tfc.InputError, match="'head/kernel' cannot be binary.*zeros=1"):
        tfc.quantize_aware(model, weights="binary", samples=X)
