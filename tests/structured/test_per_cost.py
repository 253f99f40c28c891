"""Scores per unit of cost: the formula of the cost, and the order of the greedy choice."""

import itertools
import types

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tfcompress as tfc
from tfcompress.structured import costs, latency
from tfcompress.structured.per_cost import cost_of, rank_per_cost
from tfcompress.structured.selection import Limit

L = keras.layers


def network():
    """Kernels of one group on both axes, a split, several rows for a channel, a bare product."""
    inputs = keras.Input((8, 8, 3))
    x = L.Conv2D(6, 3, padding="same", name="stem")(inputs)
    x = L.Add()([x, L.Conv2D(6, 3, padding="same", name="back")(x)])
    x = L.BatchNormalization()(L.DepthwiseConv2D(3, strides=2, name="depthwise")(x))
    x = L.ReLU()(L.Conv2D(5, 1, name="point")(x))
    y = L.Reshape((9, 5))(x)
    y = L.MultiHeadAttention(2, 4, name="attention")(y, y)
    x = L.Concatenate()([L.Flatten()(x), L.Flatten()(y)])
    return keras.Model(inputs, L.Dense(4, name="head")(x))


@pytest.fixture(scope="module")
def groups():
    return tfc.channel_groups(network())


def random_widths(groups, seed):
    random = np.random.default_rng(seed)
    return np.array([random.integers(1, group.size + 1) for group in groups])


@pytest.mark.parametrize("seed", range(3))
def test_the_formula_counts_what_is_counted_label_by_label(groups, seed):
    widths = random_widths(groups, seed)
    stays = groups.stays({g.name: np.arange(w) for g, w in zip(groups, widths, strict=True)})
    assert cost_of("macs", groups, groups)(widths) == costs.macs(groups, stays)
    assert cost_of("parameters", groups, groups)(widths) == costs.parameters(groups, stays)
    some = [*groups][1:]  # the first one stays whole
    widths[0] = groups[0].size
    whole = cost_of("macs", groups, groups)(widths)
    assert cost_of("macs", groups, some)(widths[1:]) == whole
    both = cost_of("macs", groups, groups)(np.array([widths, widths // 2 + 1]))
    assert both.shape == (2,) and both[0] == whole


def test_time_is_what_the_table_estimates(groups):
    curve = np.array([0.0, 1000.0, 50000.0]), np.array([0.0, 3.0, 9.0])
    curves = [curve, None] * len(groups.trace.kernels)
    table = latency.LatencyTable(groups, tuple(curves[: len(groups.trace.kernels)]), curve)
    widths = random_widths(groups, 0)
    kept = {g.name: np.arange(w) for g, w in zip(groups, widths, strict=True)}
    estimated = cost_of("latency", groups, groups, table)(widths)
    assert estimated == pytest.approx(table.estimate(kept))


A, B = (types.SimpleNamespace(name=name, size=size) for name, size in (("a", 3), ("b", 2)))
FREE = {"a": Limit(), "b": Limit()}


def order(ranking):
    return [
        ranking.names[g] + str(c) for g, c in zip(ranking.groups, ranking.channels, strict=True)
    ]


def test_a_ranking_by_hand():
    def area(widths):  # a channel of `a` saves the width of `b`, and the other way round
        return widths[..., 0] * widths[..., 1]

    scores = {"a": np.array([3.0, 2.0, 9.0]), "b": np.array([4.0, 1.0])}
    # 2/2 against 1/3: b1 goes; then b0 must stay, and a1 (2/1) goes before a0 (3/1).
    ranking = rank_per_cost([A, B], scores, area, FREE, normalise=False)
    assert order(ranking) == ["b1", "a1", "a0", "b0", "a2"]
    np.testing.assert_allclose(ranking.keys, [1 / 3, 2, 3, np.inf, np.inf])
    # Divided by their means, 14/3 and 5/2: 3/7 / 2 against 2/5 / 3, the same order.
    assert order(rank_per_cost([A, B], scores, area, FREE)) == ["b1", "a1", "a0", "b0", "a2"]


def test_channels_go_as_many_at_once_as_the_limit_asks_for():
    def stairs(widths):  # time falls with the fourth channel of `a` only
        return 10.0 * np.ceil(widths[..., 0] / 4) + widths[..., 1]

    a, b = (types.SimpleNamespace(name=name, size=8) for name in "ab")
    scores = {"a": np.arange(8) + 1.0, "b": np.arange(8) + 1.5}
    limits = {"a": Limit(round_to=4), "b": Limit(least=7)}
    # 1 + 2 + 3 + 4 over 10 is less than 1.5 over 1.
    ranking = rank_per_cost([a, b], scores, stairs, limits, normalise=False)
    assert order(ranking)[:5] == ["a0", "a1", "a2", "a3", "b0"]
    assert len(ranking) == 16 and order(ranking)[5:9] == ["b1", "b2", "b3", "a4"]
    single = rank_per_cost([a, b], scores, stairs, {**limits, "a": Limit()}, normalise=False)
    assert order(single)[0] == "b0", "one channel of `a` saves no time at all"


def test_nothing_may_go():
    held = {"a": Limit(least=3), "b": Limit(least=2)}
    scores = {"a": np.ones(3), "b": np.ones(2)}
    assert len(rank_per_cost([A, B], scores, lambda widths: widths.sum(-1), held)) == 5
    assert len(rank_per_cost([], {}, lambda widths: widths.sum(-1), {})) == 0


@given(
    scores=st.lists(st.floats(0.1, 10), min_size=6, max_size=6),
    saved=st.lists(st.integers(1, 9), min_size=2, max_size=2),
)
def test_no_other_choice_saves_as_much_for_less(scores, saved):
    a, b = (types.SimpleNamespace(name=name, size=3) for name in "ab")
    by_group = {"a": np.array(scores[:3]), "b": np.array(scores[3:])}
    cost = np.array(saved, float)
    ranking = rank_per_cost([a, b], by_group, lambda w: w @ cost, FREE, normalise=False)
    chosen = [*zip(ranking.groups.tolist(), ranking.channels.tolist(), strict=True)]
    loss = {(g, c): by_group["ab"[g]][c] for g, c in chosen}
    for count in range(1, 5):
        gone = chosen[:count]
        least = sum(loss[key] for key in gone)
        for other in itertools.chain(*(itertools.combinations(chosen, n) for n in range(1, 5))):
            # At least one channel of a group stays: the greedy choice has no others to pick from.
            if all(sum(g == group for g, _ in other) < 3 for group in (0, 1)):
                enough = sum(cost[g] for g, _ in other) >= sum(cost[g] for g, _ in gone)
                assert not enough or sum(loss[key] for key in other) >= least - 1e-9


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 40))
def test_the_next_width_is_the_largest_that_the_limit_allows(width, round_to, least):
    limit = Limit(least, round_to)
    allowed = [n for n in range(1, width) if limit.allowed(n, width) == n]
    assert limit.below(width) == max(allowed, default=None)


@pytest.mark.parametrize("per", ["macs", "parameters"])
def test_channels_that_cost_more_go_first(per):
    inputs = keras.Input((16, 16, 3))
    x = L.Conv2D(16, 3, padding="same", name="early", kernel_initializer="ones")(inputs)
    x = L.Conv2D(4, 3, strides=4, name="between")(x)
    x = L.Conv2D(64, 3, padding="same", name="late", kernel_initializer="ones")(x)
    model = keras.Model(inputs, L.Dense(4)(L.Flatten()(x)))
    rules = [{"layers": "between", "skip": "the same for both"}]
    budget = {f"keep_{per}": 0.8}
    small = tfc.prune_channels(model, per=per, rules=rules, **budget)
    gone = {
        name: 1 - small.get_layer(name).filters / n for name, n in (("early", 16), ("late", 64))
    }
    first, second = ("early", "late") if per == "macs" else ("late", "early")
    assert gone[first] > gone[second] == 0


def test_time_may_decide_within_a_budget_of_operations(monkeypatch):
    asked = []

    def table(groups, scheme, samples):
        asked.append(scheme)
        flat = np.array([0.0, 1e9]), np.array([0.0, 0.0])
        steep = np.array([0.0, 1e9]), np.array([0.0, 1.0])
        kernels = [variable.path for variable, _ in groups.trace.kernels]
        curves = tuple(steep if path.startswith("slow") else flat for path in kernels)
        return latency.LatencyTable(groups, curves, flat)

    monkeypatch.setattr("tfcompress.structured.prune.latency_table", table)
    inputs = keras.Input((8, 8, 8))
    x = L.Conv2D(16, 3, padding="same", name="quick")(inputs)
    x = L.Conv2D(8, 1, name="between")(x)
    x = L.Conv2D(16, 3, padding="same", name="slow")(x)
    x = L.GlobalAveragePooling2D()(L.Conv2D(8, 1, name="last")(x))
    model = keras.Model(inputs, L.Dense(4)(x))
    small = tfc.prune_channels(
        model, keep_macs=0.7, per="latency", rules=[{"layers": "between|last", "skip": "fixed"}]
    )
    assert asked == ["float32"]
    assert small.get_layer("slow").filters < small.get_layer("quick").filters == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"per": "mac"}, "Unknown per 'mac'. Did you mean 'macs'"),
        ({"per": "macs", "scope": "layer"}, "must go with scope='global'. Received: per='macs'"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(tfc.InputError, match=message):
        tfc.prune_channels(network(), keep_macs=0.5, **arguments)
