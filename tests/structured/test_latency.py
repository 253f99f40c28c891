"""The search and the table, on times that are computed from the files instead of measured."""

import keras
import numpy as np
import pytest

from tfcompress import tflite
from tfcompress.errors import InputError
from tfcompress.structured import channel_groups, keep_channels, latency
from tfcompress.structured.latency import latency_table, meet_latency, prune_to_latency
from tfcompress.structured.ranking import Ranking
from tfcompress.structured.selection import Limit, Selection
from tfcompress.tflite import flatbuffer as fb
from tfcompress.tflite.latency import measure_ratios
from tfcompress.tflite.macs import macs

L = keras.layers


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((16, 16, 3))
    x = y = L.Conv2D(16, 3, padding="same", activation="relu", name="stem")(inputs)
    for number in (1, 2):
        x = L.Conv2D(32, 3, padding="same", activation="relu", name=f"conv{number}")(x)
    x = L.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = L.Conv2D(16, 1, name="project")(x)
    x = L.GlobalAveragePooling2D()(L.Add(name="add")([x, y]))
    return keras.Model(inputs, L.Dense(4, name="head")(x))


@pytest.fixture(scope="module")
def groups(model):
    return channel_groups(model)


def operator_times(files):
    """Milliseconds that grow slower than the operations, as those of narrow layers do."""
    times = []
    for file in files:
        parsed = fb.parse(file)
        graph = parsed.subgraphs[0]
        work = [macs(parsed, graph, operator) for operator in graph.operators]
        times.append([0.002 + 1e-5 * w**0.8 for w in work])
    return times


def ratios(files):
    first, *others = [sum(ms) for ms in operator_times(files)]
    return [1.0] + [other / first for other in others]


def in_order(groups, least=1):
    """Removes channels of all groups in turn."""
    numbers = [(c / g.size, n, c) for n, g in enumerate(groups) for c in range(g.size)]
    order = sorted(numbers)
    ranking = Ranking(
        names=tuple(group.name for group in groups),
        groups=np.array([n for _, n, _ in order]),
        channels=np.array([c for _, _, c in order]),
        keys=np.array([key for key, _, _ in order]),
    )
    return Selection(groups, ranking, {g.name: Limit(least=min(least, g.size)) for g in groups})


def test_the_table_estimates_models_that_were_never_timed(groups):
    table = latency_table(groups, times=operator_times)
    generator = np.random.default_rng(0)
    for _ in range(3):
        kept = {g.name: np.arange(generator.integers(g.size // 3, g.size) + 1) for g in groups}
        (ms,) = operator_times([tflite.convert(keep_channels(groups, kept), "float32")])
        assert table.estimate(kept) == pytest.approx(sum(ms), rel=0.05)
    (whole,) = operator_times([tflite.convert(groups.model, "float32")])
    assert table.estimate({}) == pytest.approx(sum(whole), rel=1e-6)


def test_kernels_of_equal_work_are_told_apart_by_their_weights():
    inputs = keras.Input((8, 8, 4))
    x = L.Conv2D(4, 3, padding="same", name="early")(inputs)  # 8 * 8 positions of 9 * 4 * 4
    x = L.Conv2D(8, 1, strides=2, name="between")(x)
    x = L.Conv2D(8, 3, padding="same", name="late")(x)  # 4 * 4 positions of 9 * 8 * 8
    model = keras.Model(inputs, L.Dense(3)(L.GlobalAveragePooling2D()(x)))

    def slow_where_channels_are_few(files):
        parsed = [fb.parse(file).subgraphs[0] for file in files]
        early = [next(i for i, o in enumerate(g.operators) if len(o.inputs) == 3) for g in parsed]
        return [
            [5.0 if number == first else 1.0 for number in range(len(g.operators))]
            for g, first in zip(parsed, early, strict=True)
        ]

    table = latency_table(channel_groups(model), times=slow_where_channels_are_few)
    ms = [float(curve[1][-1]) for curve in table.curves if curve is not None]
    assert ms == [5.0, 1.0, 1.0, 1.0]


def test_channels_between_wide_layers_save_most(groups):
    saved = latency_table(groups, times=operator_times).saved_per_channel()
    assert saved.keys() == {group.name for group in groups}
    assert saved["conv1"] > saved["stem"] > 0
    assert saved["conv1"] > saved["conv2"]


def test_files_that_differ_in_their_operators_are_compared_as_wholes(groups, monkeypatch):
    monkeypatch.setattr(latency, "_operators", lambda file: [(str(len(file)), 1)])
    table = latency_table(groups, widths=[0.5], times=operator_times)
    half = {group.name: np.arange(group.size // 2) for group in groups}
    for kept in ({}, half):
        (ms,) = operator_times([tflite.convert(keep_channels(groups, kept), "float32")])
        assert table.estimate(kept) == pytest.approx(sum(ms))
    assert table.curves == (None,) * len(table.curves)


@pytest.mark.parametrize("target", [0.3, 0.9])
def test_the_search_meets_the_measured_target(model, groups, target):
    def build(amount):
        counts = {g.name: np.arange(max(1, int(amount * g.size))) for g in groups}
        return keep_channels(groups, counts)

    small, ratio = meet_latency(build, model, target, ratios=ratios)
    assert abs(ratio / target - 1) <= 0.1
    files = [tflite.convert(m, "float32") for m in (model, small)]
    assert ratios(files)[1] == pytest.approx(ratio)


def test_a_target_out_of_reach_names_the_nearest(model, groups):
    def build(amount):
        return keep_channels(groups, {"conv1": np.arange(max(8, int(amount * 32)))})

    with pytest.raises(InputError, match="nearest that was measured is 0.[4-9]"):
        meet_latency(build, model, 0.1, ratios=ratios)


@pytest.mark.parametrize("share", [0.4, 0.7])
def test_pruning_to_a_latency(model, groups, share):
    small = prune_to_latency(groups, in_order(groups), share, times=operator_times, ratios=ratios)
    files = [tflite.convert(m, "float32") for m in (model, small)]
    assert abs(ratios(files)[1] / share - 1) <= 0.1


def test_limits_that_forbid_the_share_are_named(groups):
    with pytest.raises(InputError, match="keep_latency must be at least 0.[5-9]"):
        prune_to_latency(
            groups, in_order(groups, least=24), 0.2, times=operator_times, ratios=ratios
        )


@pytest.mark.parametrize(
    "arguments", [{"target_ratio": 1.0}, {"target_ratio": 0.5, "tolerance": 0.0}]
)
def test_arguments_out_of_range(model, arguments):
    with pytest.raises(InputError, match="meet_latency must be in"):
        meet_latency(lambda amount: model, model, **arguments)


def test_widths_out_of_range(groups):
    with pytest.raises(InputError, match="widths of latency_table"):
        latency_table(groups, widths=[0.0], times=operator_times)


def test_a_file_takes_as_long_as_itself_and_less_than_a_much_larger_one(model):
    small = keras.Sequential([keras.Input((4,)), L.Dense(2)])
    files = [tflite.convert(m, "float32") for m in (model, model, small)]
    first, again, less = measure_ratios(files)
    assert first == 1.0
    assert 0.5 < again < 2.0
    assert less < 0.7
