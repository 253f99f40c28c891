"""Gradients and activations against formulas and Keras' own outputs; the model stays as it was."""

import keras
import numpy as np
import pytest

from tests.structured.test_scores import small_data, small_model
from tfcompress.errors import InputError
from tfcompress.structured.evidence import collect
from tfcompress.structured.groups import channel_groups

layers = keras.layers


def linear_model():
    """y = x A B + b with three hidden channels, whose gradients are a line of numpy."""
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(3, name="hidden", bias_initializer="normal"),
            layers.Dense(2, name="head"),
        ]
    )
    model.compile("sgd", "mse")
    return model


def gradients_of_linear_model(model, x, y):
    first, bias, second, last = (w.astype(np.float64) for w in model.get_weights())
    hidden = x @ first + bias
    error = 2 * (hidden @ second + last - y) / y.size
    return (
        first,
        bias,
        second,
        x.T @ (error @ second.T),
        (error @ second.T).sum(0),
        hidden.T @ error,
    )


def test_gradients_are_the_formula():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(10, 4)), random.normal(size=(10, 2))
    model = linear_model()
    groups = channel_groups(model)
    found = collect(model, groups, (x, y), needs="gradients", batch_size=5)
    taylor, fisher = np.zeros((2, 3)), np.zeros((2, 3))
    for rows in (slice(0, 5), slice(5, 10)):
        a, b, c, da, db, dc = gradients_of_linear_model(model, x[rows], y[rows])
        taylor += np.abs([(a * da).sum(0) + b * db, (c * dc).sum(1)]) / 2
        fisher += np.array([((a * da) ** 2).sum(0) + (b * db) ** 2, ((c * dc) ** 2).sum(1)]) / 4
    np.testing.assert_allclose(found.taylor["hidden"], taylor, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found.fisher["hidden"], fisher, rtol=1e-4, atol=1e-7)
    # What makes a linear channel and what reads it say the same of it.
    np.testing.assert_allclose(taylor[0], taylor[1], rtol=1e-6)


def test_taylor_is_the_change_of_the_loss_to_first_order():
    model, (x, y) = small_model(), small_data()
    groups = channel_groups(model)
    found = collect(model, groups, (x, y), needs="gradients", batch_size=len(x))
    g, step = groups["second"], 1e-2
    # BatchNorm and reader; the kernel before the BatchNorm silences nothing when it is zero.
    assert found.taylor["second"].shape == (2, 3) and found.fisher["second"].shape == (3, 3)
    for row, (layer, weights) in enumerate([("norm2", ("gamma", "beta")), ("head", ("kernel",))]):
        part = [m for m in g.members if m.layer_path == layer and m.variable.name in weights]
        before = [np.array(m.variable) for m in part]
        for channel in range(g.size):
            losses = []
            for sign in (1, -1):
                for m, w in zip(part, before, strict=True):
                    changed = w.copy()
                    changed[m.indices[m.channels == channel]] *= 1 + sign * step
                    m.variable.assign(changed)
                losses.append(np.mean((np.array(model(x)) - y) ** 2))
            slope = abs(losses[0] - losses[1]) / (2 * step)
            assert found.taylor["second"][row, channel] == pytest.approx(slope, rel=2e-2, abs=1e-4)
            for m, w in zip(part, before, strict=True):
                m.variable.assign(w)


def test_frozen_and_nested_layers_have_gradients():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="deep")], name="inner")
    inner.trainable = False
    model = keras.Sequential([keras.Input((4,)), inner, layers.Dense(2, name="head")])
    data = np.ones((6, 4)), np.zeros((6, 2))
    found = collect(model, channel_groups(model), data, "mse", "gradients")
    assert found.taylor["inner/deep"].shape == (2, 3) and (found.taylor["inner/deep"] > 0).all()


def outputs(model, names, x):
    probe = keras.Model(model.inputs, [model.get_layer(name).output for name in names])
    return probe.predict(x, verbose=0)


def test_zeros_are_those_of_the_activations_that_enter_the_readers():
    model, (x, _) = small_model(), small_data()
    groups = channel_groups(model)
    found = collect(model, groups, x, needs="activations", batch_size=8)
    depthwise, add, relu = outputs(model, ["depthwise", "add", "relu2"], x)
    expected = [(depthwise == 0).mean((0, 1, 2)), (add == 0).mean((0, 1, 2))]
    np.testing.assert_allclose(found.zeros["first"], expected, atol=1e-6)
    # Through Flatten each channel of the map is many inputs of the dense layer.
    np.testing.assert_allclose(found.zeros["second"], [(relu == 0).mean((0, 1, 2))], atol=1e-6)
    assert found.zeros["second"].min() > 0 and found.zeros["second"].max() < 1


def test_a_shared_layer_reads_in_each_place_and_concatenation_keeps_channels_apart():
    inputs = keras.Input((6,))
    a = layers.Dense(3, activation="relu", name="a")(inputs)
    b = layers.Dense(3, activation="relu", name="b")(inputs)
    shared = layers.Dense(4, name="shared")
    both = layers.Concatenate()([shared(a), shared(b)])
    model = keras.Model(inputs, layers.Dense(1, name="head")(layers.ReLU(name="relu")(both)))
    x = np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32)
    groups = channel_groups(model)
    found = collect(model, groups, x, needs="activations")
    (tied,) = [g.name for g in groups if g.size == 3]  # one layer reads both: they go together
    a, b, both = ((array == 0).mean(0) for array in outputs(model, ["a", "b", "relu"], x))
    places = sorted(found.zeros[tied].tolist())
    np.testing.assert_allclose(places, sorted([a.tolist(), b.tolist()]), atol=1e-6)
    np.testing.assert_allclose(found.zeros["shared"], [(both[:4] + both[4:]) / 2], atol=1e-6)


def test_attention_is_read_outside_of_its_heads():
    inputs = keras.Input((5, 4))
    x = layers.Dense(8, activation="relu", name="wide")(inputs)
    x = layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    groups = channel_groups(model)
    x = np.random.default_rng(0).normal(size=(10, 5, 4)).astype(np.float32)
    found = collect(model, groups, x, needs="activations")
    (wide,) = [outputs(model, ["wide"], x)]
    # Query and value are the same tensor; it enters twice.
    share = (np.reshape(wide, (-1, 8)) == 0).mean(0)
    np.testing.assert_allclose(found.zeros["wide"], [share, share], atol=1e-6)
    inside = [g for g in groups if len(found.zeros[g.name]) == 0]
    assert inside and all({m.layer_path for m in g.members} == {"attention"} for g in inside)


@pytest.mark.parametrize("needs", ["gradients", "activations"])
def test_the_model_stays_as_it_was(needs):
    inputs = keras.Input(batch_shape=(4, 3, 6))
    x = layers.Dense(5, activation="relu", name="dense")(inputs)
    x = layers.Dropout(0.5)(layers.BatchNormalization()(x))
    x = layers.GRU(4, stateful=True)(x)
    model = keras.Model(inputs, layers.Dense(1, name="last")(x))
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    data = np.random.default_rng(0).normal(size=(8, 3, 6)), np.zeros((8, 1))
    states = [*model.variables, *model.optimizer.variables]
    before = [np.array(v) for v in states]
    groups = channel_groups(model)
    first = collect(model, groups, data, needs=needs, batch_size=4)
    again = collect(model, groups, data, needs=needs, batch_size=4)
    for variable, value in zip(states, before, strict=True):
        np.testing.assert_array_equal(np.array(variable), value)
    kind = "taylor" if needs == "gradients" else "zeros"
    for g in groups:
        np.testing.assert_array_equal(first.of(kind, g), again.of(kind, g))


def test_weights_need_no_data():
    model = linear_model()
    assert not collect(model, channel_groups(model)).taylor


def test_bad_input():
    model = linear_model()
    groups, x, y = channel_groups(model), np.ones((4, 4)), np.ones((4, 2))
    with pytest.raises(InputError, match="data must be given to gather gradients"):
        collect(model, groups, needs="gradients")
    with pytest.raises(InputError, match="Unknown kind of evidence 'gradient'.*'gradients'"):
        collect(model, groups, (x, y), needs="gradient")
    with pytest.raises(InputError, match="gradients need labels"):
        collect(model, groups, x, needs="gradients")
    with pytest.raises(InputError, match=r"shape \('n', 4\)\. Received: shape=\(4, 5\)"):
        collect(model, groups, (np.ones((4, 5)), y), needs="gradients")
    with pytest.raises(InputError, match="The loss on the data must be finite"):
        collect(model, groups, (x * np.nan, y), needs="gradients")
    model.get_layer("hidden").bias.assign([np.nan, 0, 0])
    with pytest.raises(InputError, match="Weights of 'hidden' must be finite"):
        collect(model, groups, (x, y), needs="activations")
