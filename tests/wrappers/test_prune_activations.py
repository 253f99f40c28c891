"""Of an activation map the largest values go on, in Keras, in a file and in TFLite alike."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wrappers.conftest import data, functional
from tfcompress import tflite
from tfcompress.errors import InputError
from tfcompress.wrappers import KeepLargest, activation_zeros, prune_activations

layers = keras.layers


def small(x):
    x = layers.ReLU(name="relu")(layers.BatchNormalization()(layers.Conv2D(6, 3)(x)))
    x = layers.Dense(5, activation="tanh", name="hidden")(layers.GlobalAveragePooling2D()(x))
    return layers.Dense(4, activation="softmax", name="head")(x)


def pruners(model):
    return [layer.name for layer in model.layers if isinstance(layer, KeepLargest)]


def test_the_largest_magnitudes_of_each_sample_stay():
    x = np.array([[1.0, -4.0, 3.0, 2.0], [0.0, 0.5, 0.0, -0.1]], np.float32)
    y = KeepLargest(0.5)(x).numpy()
    assert y.tolist() == [[0, -4, 3, 0], [0, 0.5, 0, np.float32(-0.1)]]


def test_ties_all_stay():
    assert KeepLargest(0.25)(np.array([[2.0, -2.0, 1.0, 2.0]])).numpy().tolist() == [[2, -2, 0, 2]]


def test_one_value_always_stays():
    assert KeepLargest(0.01)(np.array([[1.0, 3.0]])).numpy().tolist() == [[0, 3]]


@given(st.integers(1, 40), st.floats(0.01, 1), st.integers(0, 2**31))
def test_without_ties_it_is_the_k_largest(size, keep, seed):
    x = np.random.default_rng(seed).permutation(np.arange(1, 2 * size + 1)).reshape(2, size)
    x = (x * np.where(x % 2, -1, 1)).astype(np.float32)
    y = KeepLargest(keep)(x).numpy()
    k = max(1, round(keep * size))
    for row, kept in zip(x, y, strict=True):
        assert np.count_nonzero(kept) == k
        assert set(kept[kept != 0]) == set(row[np.argsort(-np.abs(row))[:k]])


def test_the_gradient_reaches_what_stays():
    import tensorflow as tf

    x = tf.constant([[1.0, -4.0, 3.0, 2.0]])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(KeepLargest(0.5)(x) * [[5.0, 6.0, 7.0, 8.0]])
    assert tape.gradient(y, x).numpy().tolist() == [[0, 6, 7, 0]]


def test_a_pruner_stands_behind_each_activation_but_the_outputs():
    model = functional(small)
    config, before = model.get_config(), model.get_weights()
    pruned = prune_activations(model, keep=0.5)
    assert pruners(pruned) == ["relu_largest", "hidden_largest"]
    assert model.get_config() == config and not pruners(model)
    for ours, theirs in zip(pruned.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_model_computes_what_its_parts_do():
    model, (x, _) = functional(small), data(4)
    pruned = prune_activations(
        model, keep=0.25, rules=[{"layers": "hidden", "skip": "it is small"}]
    )
    relu = keras.Model(model.inputs, model.get_layer("relu").output).predict(x, verbose=0)
    head = keras.Model(model.get_layer("global_average_pooling2d").input, model.output)
    expected = head.predict(np.array(KeepLargest(0.25)(relu)), verbose=0)
    np.testing.assert_allclose(pruned.predict(x, verbose=0), expected, atol=1e-6)


def test_keeping_all_changes_nothing():
    assert not pruners(prune_activations(functional(small), keep=1))


def test_rules_reach_into_nested_models_and_operations():
    inner = keras.Sequential(
        [keras.Input((4,)), layers.Dense(8, "relu", name="first")], name="body"
    )
    x = keras.Input((4,))
    model = keras.Model(x, layers.Dense(2)(keras.ops.relu(layers.Dense(8)(inner(x)))))
    pruned = prune_activations(model, 0.5, [{"layers": "body/first", "keep": 0.25}])
    kept = {layer.name: layer.keep for layer in pruned.layers if isinstance(layer, KeepLargest)}
    assert kept == {"first_largest": 0.25, "relu_largest": 0.5}


def test_a_shared_layer_is_pruned_wherever_it_is_called():
    shared = layers.Dense(4, activation="relu")
    x = keras.Input((4,))
    model = keras.Model(x, layers.Dense(2)(shared(shared(x))))
    pruned = prune_activations(model, 0.5)
    calls = [node for layer in pruned.layers for node in layer._inbound_nodes]
    assert sum(isinstance(node.operation, KeepLargest) for node in calls) == 2
    assert len(pruned.weights) == len(model.weights)


def test_zeros_are_reported():
    x = np.array([[1.0, -4.0, 3.0, 2.0], [-1.0, -2.0, -3.0, 5.0]], np.float32)
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(1)(layers.ReLU(name="relu")(inputs)))
    zeros = activation_zeros(prune_activations(model, 0.5), x)
    # After the ReLU 1 0 3 2 and 0 0 0 5; of the first 3 2 stay, of the second all: t is zero.
    assert zeros == {"relu_largest": (4 / 8, 5 / 8)}


def test_trained_saved_loaded_and_converted_it_stays_the_same(tmp_path):
    x, y = data()
    pruned = prune_activations(functional(small), keep=0.2)
    pruned.compile("adam", loss="sparse_categorical_crossentropy")
    losses = pruned.fit(x, y, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    expected = pruned.predict(x, verbose=0)
    pruned.save(tmp_path / "pruned.keras")
    loaded = keras.models.load_model(tmp_path / "pruned.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), expected)
    flatbuffer = tflite.convert(loaded, scheme="float32")
    assert "TOPK_V2" in tflite.audit(flatbuffer).operators
    np.testing.assert_allclose(tflite.run(flatbuffer, x), expected, atol=1e-5)
    zeros = activation_zeros(loaded, x)["relu_largest"]
    assert zeros.before < zeros.after and zeros.after == pytest.approx(0.8, abs=0.01)


def test_an_int8_file_searches_the_largest_in_integers():
    model, (x, _) = prune_activations(functional(small), keep=0.3), data()
    flatbuffer = tflite.convert(model, scheme="int8", samples=x)
    assert tflite.audit(flatbuffer).full_integer
    # Where two values are as good as equal, rounding may turn their order: not the maximum.
    errors = np.abs(tflite.run(flatbuffer, x) - model.predict(x, verbose=0))
    assert np.median(errors) < 0.005


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"keep": 0}, r"keep of prune_activations must be in \(0, 1\]. Received: keep=0"),
        ({"keep": 1.5}, r"must be in \(0, 1\]"),
        ({"keep": True}, r"must be in \(0, 1\]"),
        ({"rules": [{"layers": "hidden", "keep": 2}]}, "keep of the rule for hidden must be"),
        ({"rules": [{"layers": "hiden", "keep": 0.2}]}, "no activation: 'hiden'.*'hidden'"),
        ({"rules": [{"layers": "head", "keep": 0.2}]}, "no activation: 'head'"),
        ({"rules": [{"layers": "relu", "share": 0.2}]}, "Unknown key of rule 1 'share'"),
    ],
)
def test_bad_settings_are_refused(options, line):
    with pytest.raises(InputError, match=line):
        prune_activations(functional(small), **options)


def test_a_model_without_activations_is_refused():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, activation="relu")])
    with pytest.raises(InputError, match="must have an activation"):
        prune_activations(model)


def test_a_map_of_unknown_size_is_refused():
    model = keras.Sequential([keras.Input((None, 3)), layers.Conv1D(3, 3, activation="relu")])
    model.add(layers.GlobalAveragePooling1D())
    with pytest.raises(InputError, match="'conv1d' must have a known size"):
        prune_activations(model)


def test_a_pruned_model_is_refused():
    with pytest.raises(InputError, match="has pruned activations already"):
        prune_activations(prune_activations(functional(small)))
    with pytest.raises(InputError, match="must have activations that are pruned"):
        activation_zeros(functional(small), data(4)[0])
