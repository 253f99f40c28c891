"""`quantize_aware(batch_norm="train")`: BatchNorm sees the batches, and the file has it folded."""

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tests.wrappers.conftest import compile_and_fit, data, functional
from tfcompress import tflite
from tfcompress.errors import InputError
from tfcompress.wrappers import QuantizedLayer

layers = keras.layers


def network(x):
    """Every kind of kernel before a BatchNorm, one without bias, one with negative factors."""
    x = layers.Conv2D(6, 3, use_bias=False, name="conv")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="first")(x))
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="deep")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="second")(x))
    y = layers.SeparableConv2D(12, 3, padding="same", name="separable")(x)
    x = layers.Add()([x, layers.BatchNormalization(scale=False, name="third")(y)])
    x = layers.Conv2DTranspose(5, 2, strides=2, name="wide")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="fourth")(x))
    return layers.Dense(4, name="head")(layers.GlobalAveragePooling2D()(x))


def negative(model):
    """Turns some of the factors of each BatchNorm around."""
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization) and layer.scale:
            signs = np.where(np.arange(layer.gamma.shape[0]) % 3, 1.0, -1.0)
            layer.gamma.assign(layer.gamma * signs)
    return model


def wrappers(model):
    return {x.name: x for x in model.layers if isinstance(x, QuantizedLayer)}


def norms(model):
    return {name: x.norm for name, x in wrappers(model).items() if x.norm is not None}


def output_steps(model, content, x):
    """Returns how many steps of the output's grid file and simulation are apart at most."""
    scale = tflite.audit(content).outputs[0]["scale"]
    return np.abs(tflite.run(content, x) - model.predict(x, verbose=0)).max() / scale


@pytest.mark.parametrize("words", [{}, {"learn": "lsq"}, {"weight_ranges": "mse"}])
def test_it_starts_where_the_folded_model_does(words):
    model, (x, _) = negative(functional(network)), data()
    folded = tfc.quantize_aware(model, samples=x, **words)
    trained = tfc.quantize_aware(model, samples=x, batch_norm="train", **words)
    assert list(norms(trained)) == ["conv", "deep", "separable", "wide"] and not norms(folded)
    outputs = [m.predict(x, verbose=0) for m in (trained, folded)]
    np.testing.assert_allclose(*outputs, atol=1e-5)


def test_in_training_it_sees_the_batch_as_the_float_model_does():
    build = lambda x: layers.BatchNormalization(momentum=0.5)(layers.Conv2D(6, 3)(x))  # noqa: E731
    model, (x, _) = functional(build), data()
    trained = tfc.quantize_aware(model, samples=x, batch_norm="train", quantize="weights")
    wanted, found = model(5 * x, training=True), trained(5 * x, training=True)
    assert np.abs(found - wanted).max() < 0.1 < np.abs(model(5 * x) - wanted).max()
    (norm,) = norms(trained).values()
    for own, theirs in zip(norm.weights, model.layers[-1].weights, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0.02, atol=0.05)


@pytest.mark.parametrize(
    ("words", "scheme"),
    [
        ({}, "int8"),
        ({"learn": "lsq"}, "int8"),
        ({"weights": "ternary"}, "int8"),
        ({"rules": [{"layers": "wide|head", "weight_bits": 4}]}, "mixed"),
    ],
)
def test_the_file_computes_what_was_trained(words, scheme, tmp_path):
    model, (x, y) = negative(functional(network)), data()
    trained = tfc.quantize_aware(model, samples=x, batch_norm="train", **words)
    before = {name: np.array(norm.gamma) for name, norm in norms(trained).items() if norm.scale}
    compile_and_fit(trained, x, y, epochs=2)
    assert all((np.array(norms(trained)[name].gamma) != old).any() for name, old in before.items())
    content = tfc.convert(trained, scheme=scheme)
    assert tflite.audit(content).full_integer
    assert output_steps(trained, content, x) <= 1.01
    trained.save(tmp_path / "trained.keras")
    loaded = keras.models.load_model(tmp_path / "trained.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), trained.predict(x, verbose=0))
    assert tfc.convert(loaded, scheme=scheme) == content


def test_it_bears_a_rate_that_a_folded_model_does_not():
    """At this rate a model without BatchNorm does not learn at all."""

    def deep(x):
        for _ in range(4):
            x = layers.Conv2D(12, 3, padding="same", use_bias=False)(x)
            x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
        return layers.Dense(4)(layers.GlobalAveragePooling2D()(x))

    x, y = data(480)
    losses = {}
    for word in ("train", "fold"):
        keras.utils.set_random_seed(0)
        model = functional(deep)
        compile_and_fit(model, x, y, epochs=3)
        trained = tfc.quantize_aware(model, samples=x, batch_norm=word)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        trained.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss=loss)
        losses[word] = trained.fit(x, y, batch_size=32, epochs=4, verbose=0).history["loss"][-1]
    assert losses["train"] < 0.5 * losses["fold"], losses


def test_a_dense_kernel_has_one_scale_unless_a_rule_says_more():
    def dense(x):
        x = layers.Dense(6, name="hidden")(layers.Flatten()(x))
        return layers.Dense(4)(layers.BatchNormalization()(x))

    model, (x, _) = functional(dense), data()
    assert not norms(tfc.quantize_aware(model, samples=x, batch_norm="train"))
    rules = [{"layers": "hidden", "granularity": "per_channel"}]
    found = norms(tfc.quantize_aware(model, samples=x, batch_norm="train", rules=rules))
    assert list(found) == ["hidden"]


def test_a_factor_of_zero_is_folded_for_good():
    model, (x, _) = functional(network), data()
    gamma = np.ones(12, np.float32)
    gamma[3] = 0
    model.get_layer("second").gamma.assign(gamma)
    trained = tfc.quantize_aware(model, samples=x, batch_norm="train")
    assert list(norms(trained)) == ["conv", "separable", "wide"]
    np.testing.assert_allclose(
        trained.predict(x, verbose=0), model.predict(x, verbose=0), rtol=0.3, atol=0.3
    )


def test_statistics_freeze_and_a_frozen_norm_stays():
    model, (x, y) = functional(network), data()
    model.get_layer("first").trainable = False
    trained = tfc.quantize_aware(model, samples=x, batch_norm="train")
    before = {name: np.array(norm.moving_mean) for name, norm in norms(trained).items()}
    compile_and_fit(trained, x, y, callbacks=[tfc.FreezeQuantization(statistics_step=0)])
    compile_and_fit(trained, x, y, callbacks=[tfc.FreezeQuantization(statistics_step=100)])
    after = {name: np.array(norm.moving_mean) for name, norm in norms(trained).items()}
    assert {name for name in before if (before[name] != after[name]).any()} == {
        "deep", "separable", "wide"
    }  # fmt: skip


def test_zeros_and_codes_stay_what_they_were():
    """16 codes per kernel of the float model's are 16 of the file's, whatever the factors are."""
    model, (x, y) = negative(functional(network)), data()
    kernel = model.get_layer("wide").kernel
    kernel.assign(np.where(np.abs(kernel) < np.median(np.abs(kernel)), 0, kernel))
    trained = tfc.quantize_aware(model, samples=x, batch_norm="train")
    cluster = tfc.ClusterOnSchedule("kmeans", clusters=8, grid="int8")
    compile_and_fit(trained, x, y, callbacks=[cluster])
    content = tfc.convert(trained, scheme="int8")
    assert output_steps(trained, content, x) <= 1.01
    found = {w.name: w for w in tflite.audit(content).weights}
    assert all(w.distinct <= 8 for w in found.values())
    (wide,) = [w for name, w in found.items() if "TRANSPOSE_CONV" in name]
    assert wide.nonzeros <= wide.size / 2


def test_reports_know_the_folded_layer():
    model, (x, _) = functional(network), data()
    trained = tfc.quantize_aware(model, samples=x, batch_norm="train")
    plain = tfc.wrappers.unrounded(trained)
    np.testing.assert_allclose(
        plain.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-3, atol=1e-4
    )
    report = tfc.quantization_report(trained, tfc.convert(trained, scheme="int8"), x)
    assert all(layer.snr_db > 15 for layer in report.layers)


def test_an_unknown_word_is_named():
    model, (x, _) = functional(network), data()
    with pytest.raises(InputError, match="batch_norm of quantize_aware.*'fold', 'train'|Did you"):
        tfc.quantize_aware(model, samples=x, batch_norm="trian")
