"""Sensitivity against models from which the channels were really removed."""

import json

import keras
import numpy as np
import pytest

from tests.structured.test_scores import small_data, small_model
from tfcompress.errors import InputError
from tfcompress.structured.groups import channel_groups
from tfcompress.structured.ranking import score_groups
from tfcompress.structured.removal import keep_channels
from tfcompress.structured.scores import SCORES
from tfcompress.structured.sensitivity import sensitivity

layers = keras.layers


def test_the_loss_is_that_of_the_model_without_the_channels():
    model, (x, y) = small_model(), small_data()
    before = model.get_weights()
    found = sensitivity(model, (x, y), score="lamp", sparsities=(0.0, 0.5, 0.9), metric="mae")
    groups = channel_groups(model)
    scores = score_groups(groups, SCORES.create("lamp"))
    for g in groups:
        order = np.argsort(scores[g.name])
        for number, count in enumerate((0, round(0.5 * g.size), g.size - 1)):
            small = keep_channels(groups, {g.name: order[count:]})
            error = np.array(small(x)) - y
            assert found.losses[g.name][number] == pytest.approx(np.mean(error**2), rel=1e-4)
            assert found.metrics[g.name][number] == pytest.approx(np.mean(abs(error)), rel=1e-4)
        assert found.losses[g.name][0] == found.loss
    assert found.metric_name == "mae" and found.sizes == (4, 3)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def attention_model():
    inputs = keras.Input((5, 4))
    x = layers.MultiHeadAttention(2, 3, name="attention")(inputs, inputs)
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    model.compile("sgd", "mse")
    return model


def test_channels_that_no_weight_reads_are_silenced_where_they_are_made():
    model = attention_model()
    random = np.random.default_rng(0)
    x, y = random.normal(size=(8, 5, 4)), random.normal(size=(8, 5, 2))
    found, groups = sensitivity(model, (x, y), sparsities=(0.6,)), channel_groups(model)
    (keys,) = [g for g in groups if all(m.role == "out" for m in g.members)]
    order = np.argsort(SCORES.create("magnitude").score(keys))
    small = keep_channels(groups, {keys.name: order[2:]})
    expected = np.mean((np.array(small(x)) - y) ** 2)
    assert found.losses[keys.name] == (pytest.approx(expected, rel=1e-4),)


def test_gradients_and_activations_are_read_from_the_same_data():
    model, data = small_model(), small_data()
    for score in ("gradient", {"apoz": {}}):
        found = sensitivity(model, data, score=score, sparsities=[0.5])
        assert found.metric is None and found.metrics is None
        assert all(np.isfinite(row).all() for row in found.losses.values())


def test_the_result_as_table_values_and_figure():
    found = sensitivity(small_model(), small_data(), sparsities=(0.25, 0.5), metric="mae")
    plain = found.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["losses"]["first"] == list(found.losses["first"])
    lines = str(found).splitlines()
    row = next(line for line in lines if line.startswith("second")).split()
    assert row == ["second", "3", *(f"{loss:.4f}" for loss in found.losses["second"])]
    assert "25%" in lines[1] and any(line.startswith("mae with") for line in lines)
    figure = found.plot()
    drawn = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    np.testing.assert_allclose(drawn["first"], [found.loss, *found.losses["first"]])
    assert found.most_sensitive()[0] == max(found.losses, key=lambda g: sum(found.losses[g]))


def test_bad_input():
    model, data = small_model(), small_data()
    for wrong in ((), (1.0,), (-0.1,)):
        with pytest.raises(InputError, match="sparsities of sensitivity must be numbers in"):
            sensitivity(model, data, sparsities=wrong)
    with pytest.raises(InputError, match="Unknown channel score 'magnitud'"):
        sensitivity(model, data, score="magnitud")
    with pytest.raises(InputError, match="metric.*acuracy"):
        sensitivity(model, data, metric="acuracy", sparsities=(0.5,))
    alone = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="only")])
    with pytest.raises(InputError, match="must have free channels.*only: it is an output"):
        sensitivity(alone, (np.ones((4, 3)), np.ones((4, 2))), "mse")
