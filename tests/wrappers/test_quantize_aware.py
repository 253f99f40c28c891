"""What `quantize_aware` promises about models, training, files and bad input."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfcompress as tfc
from tests.wrappers.conftest import compile_and_fit, data, functional
from tfcompress import tflite
from tfcompress.wrappers import FakeQuantize, QuantizedLayer

layers = keras.layers


def small(x):
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(6, 3, name="conv")(x)))
    return layers.Dense(4, name="head")(layers.GlobalAveragePooling2D()(x))


def ranges(model):
    quantizers = [x for x in model.layers if isinstance(x, FakeQuantize) and x.bounds is None]
    return {x.name: np.array(x.range) for x in quantizers}


def values(model):
    return [np.array(w) for w in model.get_weights()]


def test_the_users_model_stays_as_it_was():
    model, (x, y) = functional(small), data()
    before, config = values(model), model.get_config()
    quantized = tfc.quantize_aware(model, samples=x)
    compile_and_fit(quantized, x, y)
    assert model.get_config() == config
    for now, then in zip(values(model), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_training_lowers_the_loss():
    x, y = data()
    quantized = tfc.quantize_aware(functional(small), samples=x)
    losses = compile_and_fit(quantized, x, y, epochs=6).history["loss"]
    assert losses[-1] < losses[0]


def test_ranges_start_at_the_samples_extremes():
    x, _ = data()
    quantized = tfc.quantize_aware(functional(small), samples=x)
    first = next(iter(ranges(quantized).values()))
    np.testing.assert_allclose(first, [x.min(), x.max()])


def test_without_samples_the_first_batch_gives_the_start():
    x, y = data(32)
    quantized = tfc.quantize_aware(functional(small))
    assert not any(r.any() for r in ranges(quantized).values())
    compile_and_fit(quantized, x, y)
    first = next(iter(ranges(quantized).values()))
    np.testing.assert_allclose(first, [x.min(), x.max()], rtol=1e-6)


def test_before_training_the_model_computes_as_in_float():
    x, _ = data()
    model = functional(small)
    np.testing.assert_allclose(tfc.quantize_aware(model)(x), model(x), atol=0.02)


def test_ranges_follow_the_batches_in_training_only():
    x, y = data()
    quantized = tfc.quantize_aware(functional(small), samples=x)
    before = ranges(quantized)
    quantized.predict(10 * x, verbose=0)
    assert all(np.array_equal(r, before[name]) for name, r in ranges(quantized).items())
    compile_and_fit(quantized, 10 * x, y)
    after = ranges(quantized)
    assert all(r[0] <= 0.0 < r[1] for r in after.values())
    name = next(iter(before))
    assert after[name][0] < before[name][0] and after[name][1] > before[name][1]
    for layer in quantized.layers:
        layer.trainable = not isinstance(layer, FakeQuantize)
    compile_and_fit(quantized, x, y)
    assert all(np.array_equal(r, after[name]) for name, r in ranges(quantized).items())


def test_it_is_saved_and_loaded_with_the_package_alone(tmp_path):
    x, y = data()
    quantized = tfc.quantize_aware(functional(small), samples=x)
    compile_and_fit(quantized, x, y)
    quantized.save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "outputs.npy", quantized.predict(x, verbose=0))
    code = """
import sys, numpy, keras, tfcompress
model = keras.models.load_model(sys.argv[1] + "/model.keras")
outputs = model.predict(numpy.load(sys.argv[1] + "/x.npy"), verbose=0)
numpy.testing.assert_array_equal(outputs, numpy.load(sys.argv[1] + "/outputs.npy"))
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(["."] + sys.path)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=environment)


def test_zeros_and_shared_values_survive_training_and_conversion():
    x, y = data()
    model = functional(lambda x: layers.Dense(8, name="dense")(layers.Flatten()(x)))
    kernel, bias = values(model)
    codebook = np.array([-0.2, 0.0, 0.0, 0.1, 0.25], np.float32)
    kernel = np.random.default_rng(0).choice(codebook, kernel.shape)
    model.set_weights([kernel, bias])
    quantized = tfc.quantize_aware(model, samples=x)
    compile_and_fit(quantized, x, y)
    (dense,) = [q.layer for q in quantized.layers if isinstance(q, QuantizedLayer)]
    trained = np.array(dense.kernel)
    assert np.all((trained == 0) == (kernel == 0)) and len(np.unique(trained)) == 4
    (weights,) = [w for w in tflite.audit(tflite.convert(quantized)).weights if w.size == 2048]
    assert weights.nonzeros == np.count_nonzero(kernel) and weights.distinct == 3


@pytest.mark.parametrize("options", [{"jit_compile": True}, {"steps_per_execution": 2}, {}])
def test_it_trains_however_it_is_compiled(options):
    x, y = data()
    quantized = tfc.quantize_aware(functional(small))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    quantized.compile("adam", loss=loss, **options)
    history = quantized.fit(x, y, batch_size=32, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert all(r[1] > 0 for r in ranges(quantized).values())


def test_it_trains_in_mixed_precision():
    def build(x):
        x = layers.Conv2D(4, 3, activation="relu", dtype="mixed_float16")(x)
        x = layers.Flatten(dtype="mixed_float16")(x)
        return layers.Dense(3, activation="softmax", dtype="mixed_float16")(x)

    x, y = data()
    quantized = tfc.quantize_aware(functional(build), samples=x)
    quantized.compile("adam", loss="sparse_categorical_crossentropy")
    history = quantized.fit(x, y % 3, epochs=2, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert quantized.output.dtype == "float16"
    assert all(w.dtype == "float32" for w in quantized.weights)
    content = tflite.convert(quantized)
    assert tflite.audit(content).full_integer
    # Float16 keeps eleven digits: enough for the codes, not for their last rounding.
    np.testing.assert_allclose(tflite.run(content, x), quantized(x), atol=0.03)


def test_a_global_policy_of_mixed_precision_does_not_reach_the_file():
    x, _ = data()
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        content = tflite.convert(tfc.quantize_aware(functional(small), samples=x))
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert tflite.audit(content).full_integer


def test_replicas_average_their_ranges():
    cpus = tf.config.list_logical_devices("CPU")
    strategy = tf.distribute.MirroredStrategy([cpu.name for cpu in cpus[:2]])
    x, y = data(64)
    with strategy.scope():
        quantized = tfc.quantize_aware(functional(small))
        compile_and_fit(quantized, x, y, batch_size=64)
    first = next(iter(ranges(quantized).values()))
    parts = np.split(x, strategy.num_replicas_in_sync)
    expected = [np.mean([p.min() for p in parts]), np.mean([p.max() for p in parts])]
    np.testing.assert_allclose(first, expected, rtol=1e-6)


def test_subclassed_and_nested_models_with_several_inputs():
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(5, activation="relu")])
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    model = keras.Model({"a": a, "b": b}, {"sum": inner(a) + inner(b), "a": layers.Dense(2)(a)})
    x = {key: data(64, (6,), seed)[0] for seed, key in enumerate("ab")}
    quantized = tfc.quantize_aware(model, samples=x)
    outputs, expected = quantized(x), model(x)
    for key in expected:
        np.testing.assert_allclose(outputs[key], expected[key], atol=0.1)
    assert sum(isinstance(layer, QuantizedLayer) for layer in quantized.layers) == 2
    assert tflite.audit(tflite.convert(quantized)).full_integer


def test_what_stays_float_is_listed_with_its_reason(tmp_path):
    def build(x):
        x = layers.LayerNormalization(axis=1, name="norm")(layers.Conv2D(4, 3, name="conv")(x))
        return layers.Dense(3, name="head")(keras.ops.sin(x))

    rules = [{"layers": "head", "skip": "needs its precision"}]
    quantized = tfc.quantize_aware(functional(build), rules=rules)
    quantized.save(tmp_path / "model.keras")
    for model in (quantized, keras.models.load_model(tmp_path / "model.keras")):
        reasons = tfc.wrappers.skipped(model)
        assert reasons.pop("head") == "needs its precision"
        assert "over axes other than the last ones" in reasons.pop("norm")
        assert list(reasons.values()) == ["the operation Sin has no int8 kernel here"]


class Counting(layers.Dense):
    """Its activation counts the calls in a variable."""

    def build(self, input_shape):
        super().build(input_shape)
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False, name="calls")
        self.activation = self._counted

    def _counted(self, x):
        self.calls.assign_add(1.0)
        return x


def test_state_and_losses_of_a_wrapped_layer_get_out():
    layer = QuantizedLayer(Counting(3, activity_regularizer=keras.regularizers.L2(0.1)))
    x = keras.ops.ones((2, 4))
    kernel = None
    for _ in range(3):
        layer(x, keras.ops.convert_to_tensor([1 / 255, -128.0]))
        kernel = np.array(layer.layer.kernel) if kernel is None else kernel
    assert float(layer.layer.calls) == 3.0
    assert float(sum(layer.losses)) > 0
    np.testing.assert_array_equal(layer.layer.kernel, kernel)


def not_a_number():
    model = functional(small)
    model.layers[1].bias.assign(np.full(6, np.nan))
    return model


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: tfc.quantize_aware(m, "int9"), "Did you mean 'int8'"),
        (lambda m: tfc.quantize_aware(m, samples=np.zeros((4, 9, 9, 4))), "must have the shape"),
        (lambda m: tfc.quantize_aware(m, rules=[{"layers": "con", "skip": "x"}]), "'conv'"),
        (
            lambda m: tfc.quantize_aware(m, rules=[{"layers": "conv", "granularity": "channel"}]),
            "Unknown granularity 'channel'. Did you mean 'per_channel'",
        ),
        (lambda m: tfc.quantize_aware(tfc.quantize_aware(m)), "quantization-aware already"),
        (lambda m: tfc.quantize_aware(not_a_number()), "must be finite"),
        (lambda m: tflite.convert(tfc.quantize_aware(m)), "must have a range before"),
    ],
)
def test_bad_input_is_one_clear_line(call, message):
    with pytest.raises(tfc.InputError, match=message) as caught:
        call(functional(small))
    assert "\n" not in str(caught.value)
