"""Channel scores against numbers found by hand, by loops and by scipy."""

import types

import keras
import numpy as np
import pytest
import scipy.optimize

from tfcompress.errors import InputError
from tfcompress.structured.evidence import Evidence, collect
from tfcompress.structured.groups import Group, Member, channel_groups
from tfcompress.structured.scores import SCORES
from tfcompress.structured.scores.geometric_median import GeometricMedian, distances_to_median
from tfcompress.structured.scores.magnitude import Magnitude

layers = keras.layers


def member(array, axis, role, name="kernel", channels=None, layer=None):
    array = np.asarray(array, np.float32)
    indices = np.arange(array.shape[axis])
    channels = indices if channels is None else np.asarray(channels)
    variable = keras.Variable(array, name=name)
    return Member(layer, "layer", variable, axis, role, channels, indices)


def group(*members, size=2, name="conv"):
    return Group(name, size, tuple(members), ())


def batch_norm(gamma):
    norm = layers.BatchNormalization()
    norm.build((None, len(gamma)))
    norm.gamma.assign(gamma)
    return member(gamma, 0, "each", "gamma", layer=norm)


def small_model():
    """Every kind of member: a residual sum, BatchNorm, depthwise, and several rows per channel."""
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, padding="same", name="first")(inputs)
    x = layers.BatchNormalization(name="norm", gamma_initializer="random_uniform")(x)
    x = layers.ReLU(name="relu")(x)
    y = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    y = layers.Conv2D(4, 1, name="pointwise", activation="relu")(y)
    x = layers.Add(name="add")([x, y])
    x = layers.Conv2D(3, 3, name="second", use_bias=False)(x)
    x = layers.BatchNormalization(name="norm2", gamma_initializer="random_uniform")(x)
    x = layers.ReLU(name="relu2")(x)
    x = layers.Flatten()(x)
    model = keras.Model(inputs, layers.Dense(3, name="head")(x))
    model.compile("sgd", "mse")
    return model


def small_data(rows=20):
    random = np.random.default_rng(0)
    return random.normal(size=(rows, 6, 6, 2)).astype(np.float32), random.normal(size=(rows, 3))


@pytest.mark.parametrize("name", SCORES.names())
def test_the_contract_of_scores(name):
    model, score, data = small_model(), SCORES.create(name), small_data()
    before = [np.array(weight) for weight in model.get_weights()]
    groups = channel_groups(model)
    evidence = collect(model, groups, data, needs=score.needs, batch_size=8)
    assert {g.name: g.size for g in groups} == {"first": 4, "second": 3}
    for g in groups:
        scores = score.score(g, evidence)
        assert scores.shape == (g.size,) and scores.dtype == np.float64
        assert np.isfinite(scores).all() and (scores >= 0).all() and np.ptp(scores) > 0
        np.testing.assert_array_equal(scores, score.score(g, evidence))
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert score.needs in ("weights", "gradients", "activations")
    assert isinstance(score.normalise, bool)
    assert SCORES.create(SCORES.describe(score)) == score


def test_names():
    assert SCORES.names() == (
        "apoz",
        "bn_scale",
        "geometric_median",
        "gradient",
        "hessian",
        "lamp",
        "magnitude",
        "random",
    )


def test_magnitude_by_hand():
    # Columns of norm 5 and 13 and mean 9; rows of norm 1 and 3 and mean 2.
    made = member([[3.0, 5.0], [4.0, 12.0]], 1, "out")
    read = member([[1.0], [-3.0]], 0, "in")
    bias = member([100.0, 0.0], 0, "out", "bias")
    expected = [(5 / 9 + 1 / 2) / 2, (13 / 9 + 3 / 2) / 2]
    np.testing.assert_allclose(Magnitude().score(group(made, read, bias)), expected, rtol=1e-6)
    # Sums of magnitudes: 7 and 17, mean 12.
    expected = [(7 / 12 + 1 / 2) / 2, (17 / 12 + 3 / 2) / 2]
    np.testing.assert_allclose(Magnitude(norm=1).score(group(made, read)), expected, rtol=1e-6)


def test_wide_and_narrow_members_count_alike():
    narrow = member([[1.0, 3.0]], 1, "out")
    wide = member(np.repeat([[3.0], [1.0]], 1000, axis=1), 0, "in")
    np.testing.assert_allclose(Magnitude().score(group(narrow, wide)), [1, 1])


def test_all_rows_of_a_channel_count():
    # As after Flatten: the channels alternate, each has three rows of one column.
    rows = member([[1.0], [2.0], [2.0], [4.0], [2.0], [4.0]], 0, "in", channels=[0, 1] * 3)
    np.testing.assert_allclose(Magnitude().score(group(rows)), [2 / 3, 4 / 3])


@pytest.mark.parametrize("norm", [1, 2])
def test_magnitude_is_that_of_loops_over_channels(norm):
    model = small_model()
    for g in channel_groups(model):
        vectors = []
        for m in g.members:
            if m.variable.name not in ("bias", "beta", "moving_mean", "moving_variance"):
                w = np.moveaxis(np.array(m.variable), m.axis, 0)
                of = [w[m.indices[m.channels == c]].ravel() for c in range(g.size)]
                vectors.append([np.linalg.norm(row, norm) for row in of])
        expected = np.mean([np.array(v) / np.mean(v) for v in vectors], axis=0)
        np.testing.assert_allclose(Magnitude(norm).score(g), expected, rtol=1e-5)


def test_lamp_by_hand_and_its_order():
    # Squares 1, 4, 9 of mean 14/3: the smallest is divided by all, the largest by itself.
    g = group(member([[1.0, 2.0, 3.0]], 1, "out"), size=3)
    np.testing.assert_allclose(SCORES.create("lamp").score(g), [1 / 14, 4 / 13, 1], rtol=1e-6)
    wide = group(member(np.random.default_rng(0).normal(size=(9, 50)), 1, "out"), size=50)
    lamp, magnitude = (SCORES.create(name).score(wide) for name in ("lamp", "magnitude"))
    np.testing.assert_array_equal(np.argsort(lamp), np.argsort(magnitude))
    assert lamp.max() == 1


def test_bn_scale_is_the_mean_gamma_and_names_a_group_without():
    kernel = member([[1.0, 9.0]], 1, "out")
    g = group(kernel, batch_norm([0.5, -1.5]))
    np.testing.assert_allclose(SCORES.create("bn_scale").score(g), [0.5, 1.5])
    g = group(kernel, batch_norm([0.5, -1.5]), batch_norm([6.0, 2.0]))
    np.testing.assert_allclose(SCORES.create("bn_scale").score(g), [1.0, 1.0])
    scale = member([1.0, 2.0], 0, "each", "gamma", layer=layers.LayerNormalization())
    with pytest.raises(InputError, match="'conv' must have a BatchNormalization with scale"):
        SCORES.create("bn_scale").score(group(kernel, scale))


@pytest.mark.parametrize(("n", "d"), [(5, 1), (7, 3), (40, 20), (3, 200)])
def test_the_geometric_median_is_the_one_that_scipy_finds(n, d):
    points = np.random.default_rng(n).normal(size=(n, d)) + 10
    distances = distances_to_median(points)

    def total(x):
        return np.linalg.norm(points - x, axis=1).sum()

    found = scipy.optimize.minimize(total, points.mean(axis=0), options={"gtol": 1e-9})
    assert distances.sum() <= found.fun * (1 + 1e-7)
    if d > 1:  # on a line any point between the two in the middle will do
        expected = np.linalg.norm(points - found.x, axis=1)
        np.testing.assert_allclose(distances, expected, rtol=1e-2, atol=1e-3)


def test_a_geometric_median_on_a_point():
    # Three of five points are one: it is the median, at the start or not.
    points = np.array([[1.0, 1.0]] * 3 + [[0.0, 5.0], [7.0, 1.0]])
    np.testing.assert_allclose(distances_to_median(points), [0, 0, 0, 17**0.5, 6], atol=1e-6)
    np.testing.assert_array_equal(distances_to_median(np.ones((4, 3))), np.zeros(4))
    np.testing.assert_array_equal(distances_to_median(np.ones((1, 3))), [0])


def test_common_filters_go_before_small_ones():
    # Three filters alike, one small, one far: the small one is not the first to go.
    columns = np.array([[5.0, 5.0, 5.1, 0.1, -5.0], [5.0, 5.1, 5.0, 0.1, 5.0]])
    read = member(np.random.default_rng(0).normal(size=(5, 3)), 0, "in")
    scores = GeometricMedian().score(group(member(columns, 1, "out"), read, size=5))
    assert set(np.argsort(scores)[:3]) == {0, 1, 2} and np.argmax(scores) == 4
    np.testing.assert_allclose(scores.mean(), 1)
    with pytest.raises(InputError, match="'conv' must have kernels that make its channels"):
        GeometricMedian().score(group(read, size=5))


def test_random_depends_on_seed_and_name_alone():
    random = SCORES.create({"random": {"seed": 3}})
    one = random.score(group(size=1000))
    np.testing.assert_array_equal(one, random.score(group(batch_norm([1.0]), size=1000)))
    for other in (
        SCORES.create("random").score(group(size=1000)),
        random.score(group(size=1000, name="other")),
    ):
        assert np.abs(np.corrcoef(one, other)[0, 1]) < 0.1
    assert abs(np.sort(one) - np.linspace(0, 1, 1000)).max() < 0.06


def test_a_zero_member_leaves_the_others_to_decide():
    g = group(member(np.zeros((2, 2)), 1, "out"), member([[1.0, 3.0]], 1, "out"))
    np.testing.assert_allclose(Magnitude().score(g), [0.25, 0.75])


def test_evidence_that_is_missing_is_asked_for():
    for name, need in (
        ("gradient", "gradients"),
        ("hessian", "gradients"),
        ("apoz", "activations"),
    ):
        with pytest.raises(InputError, match=f"'conv' must hold {need}.*needs=\"{need}\""):
            SCORES.create(name).score(group(), Evidence())
    empty = Evidence(zeros={"conv": np.zeros((0, 2))})
    with pytest.raises(InputError, match="'conv' must be read by a layer.*'apoz'"):
        SCORES.create("apoz").score(group(), empty)


def test_bad_arguments_and_weights():
    with pytest.raises(InputError, match="norm of Magnitude must be 1 or 2. Received: norm=3"):
        Magnitude(norm=3)
    with pytest.raises(InputError, match="seed of Random"):
        SCORES.create({"random": {"seed": -1}})
    broken = group(member([[np.nan, 1.0]], 1, "out"))
    with pytest.raises(InputError, match="Weights of 'layer' must be finite"):
        Magnitude().score(broken)
    with pytest.raises(InputError, match="weights that multiply"):
        Magnitude().score(types.SimpleNamespace(name="conv", size=2, members=()))


@pytest.mark.parametrize(("name", "kind"), [("gradient", "taylor"), ("hessian", "fisher")])
def test_scores_can_be_changes_of_the_loss(name, kind):
    parts = {"conv": np.array([[2.0, 4.0], [6.0, 10.0]])}
    raw = SCORES.create({name: {"normalise": False}})
    np.testing.assert_allclose(raw.score(group(), Evidence(**{kind: parts})), [4, 7])
    assert not raw.normalise
    # Divided by their means, 3 and 8.
    shares = SCORES.create(name).score(group(), Evidence(**{kind: parts}))
    np.testing.assert_allclose(shares, [(2 / 3 + 6 / 8) / 2, (4 / 3 + 10 / 8) / 2])
    with pytest.raises(InputError, match="normalise of .* must be true or false. Received: norm"):
        SCORES.create({name: {"normalise": 1}})
