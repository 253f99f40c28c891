"""Branches and layers go, cheapest first, as long as the loss stays within its limit."""

import json

import keras
import numpy as np
import pytest

from tfcompress.errors import InputError
from tfcompress.structured.drop_layers import drop_layers
from tfcompress.structured.evaluation import evaluate_loss

layers = keras.layers


def dense(name, scale, units=2, bias=0.0):
    """A layer that multiplies by `scale` and adds `bias`."""
    layer = layers.Dense(units, name=name)
    layer.build((None, 2))
    layer.set_weights([scale * np.eye(2, units), np.full(units, bias)])
    return layer


def chain(scales):
    """y = sum of x * product of the scales; every layer keeps the shape."""
    return keras.Sequential(
        [keras.Input((2,)), *[dense(f"by_{s}", s) for s in scales], dense("sum", 1, units=1)]
    )


def rows(n=4, target=1.0):
    """Rows (1, anything): the model's output for scale s is s, its squared error (s - target)^2."""
    x = np.stack([np.ones(n), np.arange(n)], axis=1).astype(np.float32)
    return x, np.full((n, 1), target, np.float32)


def residual(x, name, scale):
    return layers.Add(name=f"{name}_add")([x, dense(name, scale)(x)])


def names(model):
    return [layer.name for layer in model.layers[1:]]


def test_the_cheapest_goes_first_and_the_limit_stops():
    # Output 1.0 * 1.1 * 1.5 = 1.65, target 1.6: error 0.0025, limit 0.0025 + 7 * 0.0025 = 0.02.
    # Without 1.0 the error is the same; then without 1.1 it is 0.01; then without 1.5 it is 0.36.
    small = drop_layers(chain([1.0, 1.1, 1.5]), rows(target=1.6), 7, "mse")
    assert names(small) == ["by_1.5", "sum"]
    report = small.dropped_layers
    assert [drop.layers for drop in report.dropped] == [("by_1.0",), ("by_1.1",)]
    assert [drop.parameters for drop in report.dropped] == [6, 6]
    np.testing.assert_allclose([d.loss for d in report.dropped], [0.0025, 0.01], rtol=1e-4)
    assert report.loss == pytest.approx(0.0025, rel=1e-4) and report.limit == 8 * report.loss
    ((kept,), kept_loss) = report.kept[0].layers, report.kept[0].loss
    assert kept == "by_1.5" and kept_loss == pytest.approx(0.36, rel=1e-4)


def test_effects_are_measured_again_after_each_step():
    # 2 * 0.5 = 1: alone each of them costs much, the second of the two then mends the first.
    data = rows(target=1.2)  # error 0.04; without 0.5 0.64; without 2 0.49; without both 0.04
    assert len(drop_layers(chain([2.0, 0.5]), data, 11, "mse").dropped_layers.dropped) == 0
    small = drop_layers(chain([2.0, 0.5]), data, 12, "mse")
    assert [d.layers for d in small.dropped_layers.dropped] == [("by_2.0",), ("by_0.5",)]
    assert small.dropped_layers.dropped[-1].loss == pytest.approx(0.04, rel=1e-4)


def test_a_residual_branch_becomes_the_identity():
    x = keras.Input((2,))
    y = residual(residual(x, "dead", 0.0), "alive", 3.0)
    model = keras.Model(x, dense("sum", 1, units=1)(y))
    small = drop_layers(model, rows(target=4.0), 0.0, "mse")
    assert names(small) == ["alive", "alive_add", "sum"]
    assert small.dropped_layers.dropped[0].layers == ("dead", "dead_add")
    data = rows()[0]
    np.testing.assert_array_equal(small.predict(data, verbose=0), model.predict(data, verbose=0))


def test_what_a_rule_drops_goes_whole_whatever_the_loss():
    x = keras.Input((2,))
    y = residual(residual(x, "first", 1.0), "second", 3.0)
    model = keras.Model(x, dense("sum", 1, units=1)(y))
    data = rows(target=16.0)  # (1 + 1) * (1 + 3) * 2: each branch costs much
    rule = {"layers": "first.*", "drop": True}
    small = drop_layers(model, data, None, "mse", rules=[rule])
    assert names(small) == ["second", "second_add", "sum"]
    (drop,) = small.dropped_layers.dropped
    assert drop.layers == ("first", "first_add")
    assert drop.loss == pytest.approx(evaluate_loss(small, data, "mse"), rel=1e-4)
    assert drop.loss > small.dropped_layers.limit
    with pytest.raises(InputError, match="must name layers of one branch of an Add"):
        drop_layers(model, data, 0.0, "mse", rules=[{**rule, "layers": "first|second"}])
    with pytest.raises(InputError, match="drop of a rule must be True.*drop='yes'"):
        drop_layers(model, data, 0.0, "mse", rules=[{**rule, "drop": "yes"}])


def test_either_side_of_a_sum_may_go():
    x = keras.Input((2,))
    y = dense("shortcut", 0.0)(x) + layers.ReLU(name="relu")(dense("branch", 3.0)(x))
    small = drop_layers(keras.Model(x, dense("sum", 1, units=1)(y)), rows(target=3.0), 0.0, "mse")
    assert names(small) == ["branch", "relu", "sum"]


def test_normalization_and_activation_go_with_their_layer():
    x = keras.Input((4, 4, 3))
    y = layers.Conv2D(3, 3, padding="same", name="conv")(x)
    y = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(y))
    model = keras.Model(x, layers.Dense(2, name="head")(layers.GlobalAveragePooling2D()(y)))
    random = np.random.default_rng(0)
    images = random.normal(size=(16, 4, 4, 3))
    without = keras.Model(x, model.get_layer("head")(layers.GlobalAveragePooling2D()(x)))
    data = images, without.predict(images, verbose=0)
    small = drop_layers(model, data, 0.0, "mse")
    assert "conv" not in names(small) and "norm" not in names(small)
    assert small.dropped_layers.dropped[0].layers == ("conv", "norm", "relu")
    assert small.dropped_layers.dropped[0].loss < 1e-10


def nested():
    inner_input = keras.Input((2,))
    inner = keras.Model(inner_input, residual(inner_input, "block", 0.1), name="body")
    return keras.Sequential([keras.Input((2,)), inner, dense("sum", 1, units=1)])


def test_paths_and_rules_speak_of_the_users_model():
    data = rows(target=1.0)
    small = drop_layers(nested(), data, 1, "mse")
    assert small.dropped_layers.dropped[0].layers == ("body/block", "body/block_add")
    with pytest.raises(InputError, match="not skipped by a rule"):
        drop_layers(nested(), data, 1, "mse", rules=[{"layers": "body/block", "skip": "no"}])
    with pytest.raises(InputError, match="matches no layer: 'bloc'"):
        drop_layers(nested(), data, 1, "mse", rules=[{"layers": "bloc", "skip": "no"}])


def test_the_users_model_stays_and_the_new_one_saves_and_loads(tmp_path):
    model, data = chain([1.0, 1.2]), rows()
    model.compile("sgd", "mse")
    config, before = model.get_config(), model.get_weights()
    small = drop_layers(model, data, 0.0)
    assert names(small) == ["sum"]
    assert model.get_config() == config
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)
    small.compile("sgd", "mse")
    small.fit(*data, verbose=0)
    small.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    np.testing.assert_array_equal(
        loaded.predict(data[0], verbose=0), small.predict(data[0], verbose=0)
    )
    assert json.loads(json.dumps(small.dropped_layers.to_dict()))["limit"] >= 0
    assert "dropped" in str(small.dropped_layers) and "by_1.2" in str(small.dropped_layers)


@pytest.mark.parametrize(("seed", "increase"), [(0, 0), (1, 0.3), (2, 5)])
def test_the_reported_loss_is_the_small_models(seed, increase):
    keras.utils.set_random_seed(seed)
    x = keras.Input((4, 4, 3))
    y = layers.Conv2D(4, 1, name="stem")(x)
    for block in "ab":
        z = layers.Conv2D(4, 3, padding="same", activation="relu", name=f"{block}1")(y)
        z = layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same", name=f"{block}2")(z))
        y = layers.ReLU()(layers.Add()([y, z]))
    y = layers.Conv2D(4, 1, name="shortcut")(y) + layers.DepthwiseConv2D(3, padding="same")(y)
    model = keras.Model(x, layers.Dense(3, "softmax")(layers.GlobalMaxPooling2D()(y)))
    random = np.random.default_rng(seed)
    data = random.normal(size=(20, 4, 4, 3)), random.integers(0, 3, 20)
    loss = "sparse_categorical_crossentropy"
    small = drop_layers(model, data, increase, loss)
    report = small.dropped_layers
    assert report.loss == pytest.approx(evaluate_loss(model, data, loss), rel=1e-5)
    last = report.dropped[-1].loss if report.dropped else report.loss
    assert evaluate_loss(small, data, loss) == pytest.approx(last, rel=1e-4)
    assert last <= report.limit and all(drop.loss > report.limit for drop in report.kept)
    removed = model.count_params() - sum(drop.parameters for drop in report.dropped)
    assert small.count_params() == removed


def one_way():
    x = keras.Input((3,))
    return keras.Model(x, layers.Dense(2)(layers.Dense(4)(x)))


def two_inputs():
    a, b = keras.Input((2,)), keras.Input((2,))
    return keras.Model([a, b], layers.Dense(1)(layers.Add()([dense("left", 1)(a), b])))


@pytest.mark.parametrize(
    ("build", "options", "line"),
    [
        (lambda: chain([1.0]), {"max_loss_increase": -0.1}, "must be a number of at least 0"),
        (lambda: chain([1.0]), {"max_loss_increase": float("nan")}, "must be a number"),
        (lambda: chain([1.0]), {"loss": None}, "must be compiled with a loss, or `loss` be given"),
        (one_way, {}, "must have a branch of an Add or a shape-preserving layer"),
    ],
)
def test_bad_input_is_refused(build, options, line):
    with pytest.raises(InputError, match=line):
        drop_layers(build(), rows(), **({"loss": "mse"} | options))


def test_no_input_is_cut_off():
    x, y = rows()
    small = drop_layers(two_inputs(), ([x, x], y), 100, "mse")
    assert len(small.inputs) == 2 and "add" in names(small) and "left" not in names(small)
