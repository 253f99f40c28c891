"""For each kind of layer a small model whose groups are known, and exact removal from it."""

import time

import keras
import numpy as np
import pytest

from tests.structured.random_graphs import Reversed, outputs, randomize
from tests.structured.silencing import distance, silenced
from tfcompress.errors import InputError
from tfcompress.structured import channel_groups, keep_channels

layers, ops = keras.layers, keras.ops


def conv(filters, name=None, **options):
    return layers.Conv2D(filters, 3, padding="same", name=name, **options)


def images(middle):
    """`first` makes 4 channels, `end` reads what the middle makes of them."""

    def build():
        inputs = keras.Input((8, 8, 3))
        x = middle(conv(4, "first")(inputs))
        return keras.Model(inputs, layers.Dense(2, name="end")(x))

    return build


def sequences(middle, width=4):
    def build():
        inputs = keras.Input((6, 5))
        x = middle(layers.Dense(width, name="first")(inputs))
        return keras.Model(inputs, layers.Dense(2, name="end")(x))

    return build


def volumes(middle):
    def build():
        inputs = keras.Input((4, 4, 4, 2))
        x = middle(layers.Conv3D(4, 3, padding="same", name="first")(inputs))
        return keras.Model(inputs, layers.Dense(2, name="end")(x))

    return build


def words(middle):
    def build():
        inputs = keras.Input((6,), dtype="int32")
        x = middle(layers.Embedding(9, 4, name="first")(inputs))
        return keras.Model(inputs, layers.Dense(2, name="end")(x))

    return build


def masked(middle):
    def build():
        inputs = keras.Input((6,), dtype="int32")
        x = middle(layers.Embedding(9, 4, mask_zero=True, name="first")(inputs))
        return keras.Model(inputs, layers.Dense(2, name="end")(x))

    return build


def merged(merge, **options):
    return images(lambda x: merge([x, conv(4, "other", **options)(x)]))


def squeeze_excite(x):
    scale = layers.GlobalAveragePooling2D(keepdims=True)(x)
    scale = layers.Dense(2, activation="relu", name="squeeze")(scale)
    return x * layers.Dense(4, activation="sigmoid", name="excite")(scale)


def split(x):
    left, right = ops.split(x, [1], axis=-1)
    return layers.Concatenate()([conv(2, "left")(left), conv(2, "right")(right)])


def shuffle(x):
    x = ops.transpose(ops.reshape(x, (-1, 8, 8, 2, 2)), (0, 1, 2, 4, 3))
    return ops.reshape(x, (-1, 8, 8, 4))


def twice(x):
    shared = conv(4, "shared")
    return shared(shared(x))


def nested(x):
    inner = keras.Sequential([keras.Input((8, 8, 4)), conv(6, "a"), conv(4, "b")], name="inner")
    return layers.Add()([inner(x), inner(ops.relu(x))])


def states(x):
    y, *state = layers.LSTM(3, return_sequences=True, return_state=True, name="mid")(x)
    return layers.LSTM(3, name="next")(y, initial_state=state)


def attention(x):
    return layers.MultiHeadAttention(3, 4, value_dim=5, output_shape=7, name="mid")(x, x)


def grouped_attention(x):
    return layers.GroupQueryAttention(5, 6, 3, name="mid")(x, x)


ONE, TWO = {"first": 4}, {"first": 4, "mid": 5}
PAIR = {"first": 4, "other": 4}
# name: (model, its groups and their sizes)
CASES = {
    "Conv1D": (sequences(layers.Conv1D(5, 3, name="mid")), TWO),
    "Conv2D": (images(conv(5, "mid", strides=2)), TWO),
    "Conv2D dilated": (images(conv(5, "mid", dilation_rate=2)), TWO),
    "Conv3D": (volumes(layers.Conv3D(5, 2, name="mid")), TWO),
    "Conv1DTranspose": (sequences(layers.Conv1DTranspose(5, 3, strides=2, name="mid")), TWO),
    "Conv2DTranspose": (images(layers.Conv2DTranspose(5, 3, strides=2, name="mid")), TWO),
    "Conv3DTranspose": (volumes(layers.Conv3DTranspose(5, 2, name="mid")), TWO),
    "grouped Conv2D": (images(conv(6, "mid", groups=2)), {"first": 2, "mid": 3}),
    "Conv2D of single channels": (images(conv(8, "mid", groups=4)), ONE),
    "DepthwiseConv1D": (sequences(layers.DepthwiseConv1D(3)), ONE),
    "DepthwiseConv2D": (images(layers.DepthwiseConv2D(3, depth_multiplier=2)), ONE),
    "SeparableConv1D": (sequences(layers.SeparableConv1D(5, 3, name="mid")), TWO),
    "SeparableConv2D": (images(layers.SeparableConv2D(5, 3, 1, "same", name="mid")), TWO),
    "Dense": (images(layers.Dense(5, activation="silu", name="mid")), TWO),
    "EinsumDense": (sequences(layers.EinsumDense("abc,cd->abd", (6, 5), name="mid")), TWO),
    "EinsumDense into heads": (
        sequences(
            lambda x: layers.EinsumDense("abde,def->abf", (6, 7), name="back")(
                layers.EinsumDense("abc,cde->abde", (6, 3, 5), bias_axes="de", name="mid")(x)
            )
        ),
        {"first": 4, "mid": 3, "mid_1": 5, "back": 7},
    ),
    "Embedding": (words(layers.ReLU()), ONE),
    "LSTM": (sequences(layers.LSTM(5, name="mid")), TWO),
    "LSTM masked": (masked(layers.LSTM(5, name="mid")), TWO),
    "Bidirectional masked": (masked(layers.Bidirectional(layers.GRU(5), name="mid")), TWO),
    "TimeDistributed masked": (
        masked(layers.TimeDistributed(layers.Dense(5, name="d"), name="mid")),
        {"first": 4, "mid/d": 5},
    ),
    "LSTM with states": (sequences(states), {"first": 4, "mid": 3}),
    "GRU": (sequences(layers.GRU(5, name="mid")), TWO),
    "GRU before": (sequences(layers.GRU(5, reset_after=False, name="mid")), TWO),
    "SimpleRNN": (sequences(layers.SimpleRNN(5, return_sequences=True, name="mid")), TWO),
    "Bidirectional": (sequences(layers.Bidirectional(layers.LSTM(5), name="mid")), TWO),
    "Bidirectional sum": (
        sequences(layers.Bidirectional(layers.GRU(5), merge_mode="sum", name="mid")),
        TWO,
    ),
    "TimeDistributed Dense": (
        sequences(layers.TimeDistributed(layers.Dense(5, name="d"), name="mid")),
        {"first": 4, "mid/d": 5},
    ),
    "TimeDistributed BatchNormalization": (
        sequences(layers.TimeDistributed(layers.BatchNormalization())),
        ONE,
    ),
    "TimeDistributed Conv1D": (
        images(layers.TimeDistributed(layers.Conv1D(5, 3, name="c"), name="mid")),
        {"first": 4, "mid/c": 5},
    ),
    "MultiHeadAttention": (
        sequences(attention),
        {"first": 4, "mid": 3, "mid_1": 4, "mid_2": 5, "mid_3": 7},
    ),
    "GroupQueryAttention": (
        sequences(grouped_attention),
        {"first": 4, "mid": 3, "mid_1": 3},
    ),
    "BatchNormalization": (images(layers.BatchNormalization()), ONE),
    "LayerNormalization": (images(layers.LayerNormalization()), ONE),
    "LayerNormalization over positions": (images(layers.LayerNormalization(axis=(1, 2))), ONE),
    "RMSNormalization": (images(layers.RMSNormalization()), ONE),
    "GroupNormalization": (images(layers.GroupNormalization(2)), {"first": 2}),
    "GroupNormalization of each": (images(layers.GroupNormalization(-1)), ONE),
    "PReLU": (images(layers.PReLU()), ONE),
    "PReLU shared": (images(layers.PReLU(shared_axes=[1, 2])), ONE),
    "LeakyReLU": (images(layers.LeakyReLU()), ONE),
    "ELU": (images(layers.ELU()), ONE),
    "Rescaling": (images(layers.Rescaling(0.1, 1.0)), ONE),
    "Dropout": (images(layers.Dropout(0.5)), ONE),
    "Add": (merged(layers.Add()), ONE),
    "Subtract": (merged(layers.Subtract()), ONE),
    "Multiply": (merged(layers.Multiply()), ONE),
    "Average": (merged(layers.Average()), ONE),
    "Maximum": (merged(layers.Maximum()), ONE),
    "Minimum": (merged(layers.Minimum()), ONE),
    "Concatenate": (merged(layers.Concatenate()), PAIR),
    "Concatenate rows": (merged(layers.Concatenate(axis=1)), ONE),
    "squeeze and excite": (images(squeeze_excite), {"first": 4, "squeeze": 2}),
    "Flatten": (images(layers.Flatten()), ONE),
    "Reshape": (images(layers.Reshape((16, 4, 4))), ONE),
    "Reshape interleaved": (images(layers.Reshape((8, 32))), ONE),
    "Reshape of units to maps": (
        sequences(lambda x: layers.Reshape((2, 3, 4))(layers.Dense(24, name="u")(x[:, 0]))),
        {"first": 4, "u": 4},
    ),
    "Permute": (images(lambda x: layers.Permute((2, 3, 1))(layers.Permute((3, 1, 2))(x))), ONE),
    "RepeatVector": (
        images(lambda x: layers.RepeatVector(3)(layers.GlobalMaxPooling2D()(x))),
        ONE,
    ),
    "MaxPooling2D": (images(layers.MaxPooling2D()), ONE),
    "AveragePooling2D": (images(layers.AveragePooling2D(3, padding="same")), ONE),
    "AveragePooling1D": (sequences(layers.AveragePooling1D(2)), ONE),
    "GlobalAveragePooling2D": (images(layers.GlobalAveragePooling2D()), ONE),
    "GlobalMaxPooling1D": (sequences(layers.GlobalMaxPooling1D(keepdims=True)), ONE),
    "ZeroPadding2D": (images(layers.ZeroPadding2D()), ONE),
    "UpSampling2D": (images(layers.UpSampling2D(interpolation="bilinear")), ONE),
    "Cropping2D": (images(layers.Cropping2D()), ONE),
    "Resizing": (images(layers.Resizing(4, 4)), ONE),
    "CenterCrop": (images(layers.CenterCrop(4, 4)), ONE),
    "RandomFlip": (images(layers.RandomFlip()), ONE),
    "RandomRotation": (images(layers.RandomRotation(0.1)), ONE),
    "RandomZoom": (images(layers.RandomZoom(0.1)), ONE),
    "RandomTranslation": (images(layers.RandomTranslation(0.1, 0.1)), ONE),
    "arithmetic": (images(lambda x: 1.0 - ops.sigmoid(x * 2.0 + 1.0) ** 2), ONE),
    "where": (merged(lambda pair: ops.where(pair[0] > 0, pair[1], 0.1)), ONE),
    "ops.split": (images(split), {"first": 1, "first_1": 3, "left": 2, "right": 2}),
    "slices": (
        images(lambda x: layers.Concatenate()([x[..., 1:], conv(2, "right")(x[:, :, :, :1])])),
        {"first": 1, "first_1": 3, "right": 2},
    ),
    "ops.transpose": (
        images(lambda x: ops.transpose(ops.relu(ops.transpose(x, (0, 3, 1, 2))), (0, 2, 3, 1))),
        ONE,
    ),
    "ops.reshape": (images(lambda x: ops.reshape(x, (-1, 256))), ONE),
    "ops.mean over space": (images(lambda x: x - ops.mean(x, (1, 2), keepdims=True)), ONE),
    "ops.expand_dims": (images(lambda x: ops.squeeze(ops.expand_dims(x, 1), 1)), ONE),
    "ops.stack": (merged(lambda pair: ops.stack(pair, axis=1)), ONE),
    "ops.pad": (images(lambda x: ops.pad(x, [[0, 0], [1, 1], [0, 0], [0, 0]])), ONE),
    "ops.einsum": (
        sequences(lambda x: ops.einsum("btc,bsc->bts", x, layers.Dense(4, name="keys")(x))),
        ONE,
    ),
    "channel shuffle": (images(shuffle), {"first": 2}),
    "shared layer": (images(twice), ONE),
    "nested model, called twice": (images(nested), {"first": 4, "inner/a": 6, "inner/b": 4}),
}
INEXACT = {
    "LayerNormalization": "takes its statistics over those that remain",
    "RMSNormalization": "takes its statistics over those that remain",
    "MultiHeadAttention": "leaves their products out of its scores",
    "GroupQueryAttention": "leaves their products out of its scores",
    "ops.einsum": "leaves their products out",
}


def sample(model):
    random = np.random.default_rng(0)
    shapes = [(2, *x.shape[1:]) for x in model.inputs]
    if "int" in model.inputs[0].dtype:
        return [random.integers(0, 9, shape).astype(np.int32) for shape in shapes]
    return [random.normal(size=shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("name", CASES)
def test_groups_are_those_known_by_hand_and_removal_is_silence(name):
    build, expected = CASES[name]
    model = build()
    randomize(model, seed=1)
    groups, x, random = channel_groups(model), sample(model), np.random.default_rng(2)
    assert {group.name: group.size for group in groups} == expected
    inexact = {reason for group in groups for reason in group.inexact}
    assert len(inexact) == (name in INEXACT)
    assert all(INEXACT[name] in reason for reason in inexact)
    for _ in range(3):
        kept = {
            group.name: np.sort(
                random.permutation(group.size)[: random.integers(1, group.size + 1)]
            )
            for group in groups
            if not group.inexact
        }
        small = keep_channels(groups, kept)
        with silenced(groups, kept):
            assert distance(outputs(small, x), outputs(model, x)) < 1e-5


PINNED = {
    "custom layer": (images(Reversed()), "first", "is not known to keep channels apart"),
    "Lambda": (images(layers.Lambda(lambda x: x + 1.0)), "first", "is not known to keep"),
    "Softmax": (images(layers.Softmax()), "first", "shares its sum among them"),
    "softmax": (images(layers.Activation("softmax")), "first", "shares its sum among them"),
    "ops.mean": (images(lambda x: ops.mean(x, axis=-1, keepdims=True)), "first", "reduces over"),
    "output": (images(layers.ReLU()), "end", "it is an output of the model"),
    "constants": (images(lambda x: x * np.ones(4, "float32")), "first", "what must stay"),
    "flip": (images(lambda x: ops.flip(x, axis=-1)), "first", "moves them along their axis"),
    "noise_shape": (
        images(layers.Dropout(0.5, noise_shape=(None, 1, 1, 4))),
        "first",
        "noise_shape",
    ),
    "attention mask": (
        sequences(
            lambda x: layers.MultiHeadAttention(2, 2)(x[..., :3], x[..., :3], attention_mask=x > 0),
            6,
        ),
        "first",
        "attends along them",
    ),
    "input": (
        images(lambda x: layers.Add()([x, keras.layers.ZeroPadding2D(0)(x)])),
        "end",
        "it is an output of the model",
    ),
}


@pytest.mark.parametrize("name", PINNED)
def test_what_cannot_be_proved_is_pinned_with_a_reason(name):
    build, layer, reason = PINNED[name]
    groups = channel_groups(build())
    assert reason in groups.pinned[layer]
    assert layer not in {group.name for group in groups}
    assert f"pinned: {layer}: {groups.pinned[layer]}" in str(groups)


def test_what_is_added_to_an_input_is_pinned():
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(
        inputs, conv(2, "end")(layers.Add(name="sum")([inputs, conv(3, "a")(inputs)]))
    )
    groups = channel_groups(model)
    assert len(groups) == 0 and "'sum'" in groups.pinned["a"]


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3)

    def call(self, x):
        return self.dense(x)


def test_subclassed_and_unbuilt_models_are_errors_that_say_what_to_do():
    model = Subclassed()
    model(np.zeros((1, 4)))
    nested = keras.Sequential([keras.Input((4,)), model, layers.Dense(2)])
    for given in (model, nested):
        with pytest.raises(InputError, match=r"Subclassed '.*' must be functional or Sequential"):
            channel_groups(given)
    with pytest.raises(InputError, match="must be built"):
        channel_groups(keras.Sequential([layers.Dense(2)]))
    with pytest.raises(InputError, match="must be a Keras 3 model"):
        channel_groups("model")


def members(groups, name):
    """Returns (layer path, weight, axis, role, channels, indices) for each member of a group."""
    return {
        (m.layer_path, m.variable.name, m.axis, m.role, tuple(m.channels), tuple(m.indices))
        for m in groups[name].members
    }


def test_members_of_a_convolution_before_flatten():
    inputs = keras.Input((2, 1, 3))
    x = layers.BatchNormalization(name="norm", scale=False)(conv(2, "a")(inputs))
    groups = channel_groups(keras.Model(inputs, layers.Dense(2, name="b")(layers.Flatten()(x))))
    both = (0, 1), (0, 1)
    assert members(groups, "a") == {
        ("a", "kernel", 3, "out", *both),
        ("a", "bias", 0, "out", *both),
        ("norm", "beta", 0, "each", *both),
        ("norm", "moving_mean", 0, "each", *both),
        ("norm", "moving_variance", 0, "each", *both),
        ("b", "kernel", 0, "in", (0, 1, 0, 1), (0, 1, 2, 3)),
    }


def test_members_of_recurrent_units_are_a_column_for_each_gate():
    inputs = keras.Input((3, 2))
    groups = channel_groups(keras.Sequential([inputs, layers.LSTM(2, name="a"), layers.Dense(1)]))
    gates = (0, 1) * 4, tuple(range(8))
    assert members(groups, "a") >= {
        ("a", "kernel", 1, "out", *gates),
        ("a", "recurrent_kernel", 1, "out", *gates),
        ("a", "recurrent_kernel", 0, "in", (0, 1), (0, 1)),
        ("a", "bias", 0, "out", *gates),
    }


def test_members_of_a_grouped_convolution_are_one_of_every_group():
    inputs = keras.Input((8, 8, 3))
    model = keras.Sequential([inputs, conv(4, "a"), conv(4, "b", groups=2), conv(1, "c")])
    groups = channel_groups(model)
    assert ("a", "kernel", 3, "out", (0, 1, 0, 1), (0, 1, 2, 3)) in members(groups, "a")
    assert ("b", "kernel", 2, "in", (0, 1), (0, 1)) in members(groups, "a")
    assert ("b", "kernel", 3, "out", (0, 1, 0, 1), (0, 1, 2, 3)) in members(groups, "b")


def test_members_of_a_depthwise_convolution_are_several_for_each_channel():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            conv(2, "a"),
            layers.DepthwiseConv2D(3, depth_multiplier=2, name="b"),
            conv(1, "c"),
        ]
    )
    found = members(channel_groups(model), "a")
    assert ("b", "kernel", 2, "each", (0, 1), (0, 1)) in found
    assert ("b", "bias", 0, "each", (0, 0, 1, 1), (0, 1, 2, 3)) in found
    assert ("c", "kernel", 2, "in", (0, 0, 1, 1), (0, 1, 2, 3)) in found


@pytest.mark.parametrize("key", ["MultiHeadAttention", "GroupQueryAttention"])
def test_key_dimensions_are_removed_as_if_they_were_zero(key):
    """Of queries and keys; the scale of the scores stays that of the old width."""
    model = CASES[key][0]()
    randomize(model, seed=3)
    groups, x = channel_groups(model), sample(model)
    (group,) = [group for group in groups if group.inexact]
    small = keep_channels(groups, {group.name: [0, 2]})
    for member in group.members:
        if member.role == "out":
            weights = np.array(member.variable)
            index = [slice(None)] * weights.ndim
            index[member.axis] = member.indices[member.channels % 2 == 1]
            weights[tuple(index)] = 0
            member.variable.assign(weights)
    assert distance(outputs(small, x), outputs(model, x)) < 1e-5


def test_frozen_layers_stay_frozen_and_wide_policies_wide():
    inputs = keras.Input((8, 8, 3))
    x = conv(4, "a", dtype="mixed_float16", trainable=False)(inputs)
    groups = channel_groups(keras.Model(inputs, conv(2, "b")(x)))
    small = keep_channels(groups, {"a": [0, 3]})
    layer = small.get_layer("a")
    assert not layer.trainable and layer.compute_dtype == "float16" and layer.filters == 2
    assert small.get_layer("b").trainable


def test_the_graph_of_a_thousand_layers_takes_seconds():
    inputs = x = keras.Input((4,))
    for _ in range(333):
        x = layers.Add()([layers.Dense(4)(x), layers.Dense(4)(x)])
    model = keras.Model(inputs, layers.Dense(1)(x))
    started = time.process_time()
    groups = channel_groups(model)
    assert time.process_time() - started < 5.0
    *others, last = groups
    assert len(groups) == 333 and all(len(group.members) == 6 for group in others)
    assert len(last.members) == 5


def test_no_part_of_a_split_becomes_empty():
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(8, 3, name="conv")(inputs)
    first, rest = keras.ops.split(x, [2], axis=-1)
    x = keras.ops.concatenate([keras.ops.relu(first), rest], axis=-1)
    model = keras.Model(inputs, layers.Dense(3, name="head")(layers.GlobalMaxPooling2D()(x)))
    groups = channel_groups(model)
    assert groups["conv"].size == 6  # one of each part is held
    assert groups.pinned["conv"] == "a part of a split must not become empty"
    small = keep_channels(groups, {"conv": [0]})
    assert small.get_layer("conv").filters == 3
    assert small(np.zeros((1, 6, 6, 2))).shape == (1, 3)


def test_limits_of_a_clip_for_each_channel_pin_them():
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, name="conv")(inputs)
    x = keras.ops.clip(x, -1.0, np.arange(4.0))
    model = keras.Model(inputs, layers.Dense(3, name="head")(layers.GlobalMaxPooling2D()(x)))
    assert "has a limit for each of them" in channel_groups(model).pinned["conv"]


@pytest.mark.parametrize("kept", [[], [4], [-1], [0.5], [True, False, True, True], ["a"]])
def test_channels_that_do_not_exist_cannot_be_kept(kept):
    groups = channel_groups(CASES["Dropout"][0]())
    with pytest.raises(InputError, match=r"'first' must be at least one whole number.* in \[0, 4"):
        keep_channels(groups, {"first": kept})
