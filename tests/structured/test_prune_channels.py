"""One-shot channel pruning: budgets are met, limits hold, errors name what stands against."""

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tfcompress.structured.scores import SCORES

layers = keras.layers


def network():
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(16, 3, padding="same", name="stem")(inputs)
    x = layers.BatchNormalization()(x)
    y = layers.Conv2D(24, 3, padding="same", activation="relu", name="inside")(x)
    y = layers.BatchNormalization()(y)
    x = layers.ReLU()(layers.Add()([x, layers.Conv2D(16, 3, padding="same", name="back")(y)]))
    x = layers.Conv2D(32, 3, strides=2, activation="relu", name="last")(x)
    return keras.Model(inputs, layers.Dense(4, name="head")(layers.GlobalMaxPooling2D()(x)))


def macs(model):
    return tfc.audit(tfc.convert(model, scheme="float32")).macs


@pytest.mark.parametrize("score", SCORES.names())
def test_every_score_meets_the_budget(score):
    model = network()
    rules = [{"layers": "last", "skip": "no BatchNorm follows"}]
    rng = np.random.default_rng(0)
    data = rng.normal(size=(32, 16, 16, 3)).astype(np.float32), rng.integers(0, 4, 32)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    small = tfc.prune_channels(model, keep_macs=0.5, score=score, data=data, loss=loss, rules=rules)
    assert 0.4 < macs(small) / macs(model) <= 0.5
    assert small.output_shape == model.output_shape


def test_weights_and_bytes_are_budgets_too():
    model = network()
    small = tfc.prune_channels(model, keep_parameters=0.3)
    assert 0.25 < small.count_params() / model.count_params() <= 0.3
    small = tfc.prune_channels(model, keep_bytes=0.3)
    ratio = len(tfc.convert(small, scheme="float32")) / len(tfc.convert(model, scheme="float32"))
    assert 0.27 < ratio <= 0.3


def test_widths_are_rounded_and_rules_hold():
    small = tfc.prune_channels(
        network(),
        keep_macs=0.45,
        round_to=8,
        rules=[
            {"layers": "last", "skip": "feeds the head"},
            {"layers": "stem", "keep_at_least": 0.9},
        ],
    )
    assert small.get_layer("last").filters == 32
    assert small.get_layer("stem").filters == small.get_layer("back").filters == 16
    assert small.get_layer("inside").filters in (8, 16)


def test_scope_layer_takes_the_same_share_of_each_group():
    small = tfc.prune_channels(network(), keep_macs=np.float32(0.3), scope="layer")
    shares = [small.get_layer(n).filters / w for n, w in (("stem", 16), ("inside", 24))]
    assert abs(shares[0] - shares[1]) < 0.07


def test_the_optimizer_goes_along():
    model = network()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss)
    x, y = np.random.default_rng(0).normal(size=(8, 16, 16, 3)), np.arange(8) % 4
    model.fit(x, y, verbose=0)
    small = tfc.prune_channels(model, keep_macs=0.5, optimizer=True)
    assert int(small.optimizer.iterations) == 1
    momenta = [v for v in small.optimizer.variables if "momentum" in v.path]
    assert [tuple(m.shape) for m in momenta] == [tuple(v.shape) for v in small.trainable_variables]
    groups = tfc.channel_groups(model)
    kept = tfc.keep_channels(groups, {"inside": [1, 3]}, optimizer=True)
    old, new = (
        next(
            v for v in m.optimizer.variables if "inside_kernel_momentum" in v.path.replace("/", "_")
        )
        for m in (model, kept)
    )
    np.testing.assert_array_equal(old.numpy()[..., [1, 3]], new.numpy())
    small.fit(x, y, verbose=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs just one budget of keep_macs, .*Received: none"),
        ({"keep_macs": 0.5, "keep_bytes": 0.5}, "Received: keep_macs=0.5, keep_bytes=0.5"),
        ({"keep_macs": 1.5}, r"keep_macs of prune_channels must be a share in \(0, 1\)"),
        ({"keep_macs": 1e-5}, "must be at least 0.0.*the smallest that can be reached.*pinned"),
        ({"keep_bytes": 1e-5}, "keep_bytes must be at least 0.*pinned are head"),
        ({"keep_macs": 0.5, "rules": [{"layers": "nothing", "skip": "x"}]}, "matches no"),
        ({"keep_macs": 0.5, "round_to": 0}, "round_to must be a whole number of at least 1"),
        ({"keep_macs": 0.5, "score": "gradients"}, "Unknown channel score .*'gradient'"),
        ({"keep_macs": 0.5, "score": "apoz"}, "data must be given to gather activations"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(tfc.InputError, match=message):
        tfc.prune_channels(network(), **arguments)


def test_models_that_cannot_be_pruned():
    pinned = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="head")])
    with pytest.raises(tfc.InputError, match="must have channels that can go. Pinned are head"):
        tfc.prune_channels(pinned, keep_macs=0.5)
    aware = tfc.quantize_aware(keras.Sequential([keras.Input((4,)), layers.Dense(3)]))
    assert "none: no layer is known" in str(tfc.channel_groups(aware))
    with pytest.raises(tfc.InputError, match="quantize_aware comes afterwards"):
        tfc.prune_channels(aware, keep_macs=0.5)
    broken = network()
    broken.get_layer("inside").kernel.assign(np.full((3, 3, 16, 24), np.nan))
    with pytest.raises(tfc.InputError, match="Weights of 'inside' must be finite"):
        tfc.prune_channels(broken, keep_macs=0.5)
