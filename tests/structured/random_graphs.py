"""Random functional models, small and quick to build, of everything that touches channels.

`models()` is a hypothesis strategy. A model grows step by step: a step takes one of the last
tensors and makes another one of it, with a layer, a branch that is merged again, a nested model, or
a `keras.ops` call. Weights and BatchNorm statistics are random and no value is where Keras starts
it.
"""

import functools

import keras
import numpy as np
from hypothesis import strategies as st

layers, ops = keras.layers, keras.ops

ACTIVATIONS = ["linear", "relu", "relu6", "sigmoid", "tanh", "elu", "hard_swish", "softplus"]
CHANNELS = st.integers(2, 6)
SMALL = 8  # steps that enlarge an image are for images up to this


@keras.saving.register_keras_serializable("tests")
class Reversed(layers.Layer):
    """A layer that nobody knows: it mixes up the channels."""

    def call(self, x):
        return x[..., ::-1]


# Steps: (draw, x of shape (None, height, width, channels)) -> another such tensor


def convolution(draw, x):
    kernel = draw(st.sampled_from([1, 3]))
    return layers.Conv2D(
        draw(CHANNELS),
        kernel,
        strides=draw(st.sampled_from([1, 1, 2])),
        padding="same" if min(x.shape[1:3]) < kernel else draw(st.sampled_from(["same", "valid"])),
        activation=draw(st.sampled_from(ACTIVATIONS)),
        use_bias=draw(st.booleans()),
    )(x)


def grouped(draw, x):
    parts = draw(st.sampled_from([n for n in range(1, x.shape[-1] + 1) if x.shape[-1] % n == 0]))
    filters = parts * draw(st.integers(1, 3))
    return layers.Conv2D(filters, 3, groups=parts, padding="same", activation="relu")(x)


def depthwise(draw, x):
    multiplier = draw(st.sampled_from([1, 2]))
    return layers.DepthwiseConv2D(
        3, depth_multiplier=multiplier, padding="same", use_bias=draw(st.booleans())
    )(x)


def separable(draw, x):
    multiplier = draw(st.sampled_from([1, 2]))
    return layers.SeparableConv2D(
        draw(CHANNELS), 3, depth_multiplier=multiplier, padding="same", activation="relu"
    )(x)


def transposed(draw, x):
    strides = 2 if x.shape[1] <= SMALL // 2 else 1
    return layers.Conv2DTranspose(draw(CHANNELS), 3, strides=strides, padding="same")(x)


def dense(draw, x):
    return layers.Dense(draw(CHANNELS), activation=draw(st.sampled_from(ACTIVATIONS)))(x)


def einsum_dense(draw, x):
    shape = (*x.shape[1:3], draw(CHANNELS))
    return layers.EinsumDense("abcd,de->abce", output_shape=shape, bias_axes="e")(x)


def batch_norm(draw, x):
    x = layers.BatchNormalization(scale=draw(st.booleans()), center=draw(st.booleans()))(x)
    return layers.Activation(draw(st.sampled_from(ACTIVATIONS)))(x)


def prelu(draw, x):
    return layers.PReLU(shared_axes=draw(st.sampled_from([None, [1, 2]])))(x)


def activation(draw, x):
    name = draw(st.sampled_from([*ACTIVATIONS, "dropout", "softmax"]))
    return layers.Dropout(0.3)(x) if name == "dropout" else layers.Activation(name)(x)


def pooling(draw, x):
    kind = draw(st.sampled_from([layers.MaxPooling2D, layers.AveragePooling2D]))
    return kind(2, padding="same", strides=draw(st.sampled_from([1, 2])))(x)


def resizing(draw, x):
    if x.shape[1] > SMALL:
        return layers.Cropping2D(2)(x)
    if x.shape[1] <= SMALL // 2 and draw(st.booleans()):
        return layers.UpSampling2D(2, interpolation=draw(st.sampled_from(["nearest", "bilinear"])))(
            x
        )
    return layers.ZeroPadding2D(((1, 0), (0, 1)))(x)


def squeeze_excite(draw, x):
    scale = layers.GlobalAveragePooling2D(keepdims=True)(x)
    scale = layers.Dense(draw(CHANNELS), activation="relu")(scale)
    if draw(st.booleans()):
        scale = layers.Conv2D(x.shape[-1], 1, activation="hard_sigmoid")(scale)
    else:
        scale = layers.Dense(x.shape[-1], activation="sigmoid")(scale)
    return layers.Multiply()([x, scale])


def arithmetic(draw, x):
    kind = draw(st.sampled_from(["affine", "rest", "clip", "constants", "mean", "roots"]))
    if kind == "affine":
        return x * 2.0 + 1.0
    if kind == "rest":
        return 1.0 - x / 3.0
    if kind == "clip":
        return ops.maximum(ops.minimum(x, 2.0), -0.5)
    if kind == "constants":
        return x * np.linspace(0.5, 1.5, x.shape[-1], dtype="float32")
    if kind == "mean":
        return x - ops.mean(x, axis=(1, 2), keepdims=True)
    return ops.sqrt(ops.abs(x) + 0.1)


def transpositions(draw, x):
    """The channels travel to another axis and back."""
    if draw(st.booleans()):
        y = ops.transpose(x, (0, 3, 1, 2))
        return ops.transpose(ops.relu(y) + 0.5, (0, 2, 3, 1))
    y = layers.Permute((3, 1, 2))(x)
    return layers.Permute((2, 3, 1))(layers.ReLU()(y))


def transposed_for_good(draw, x):
    """What was a column is a channel now."""
    return layers.Permute(draw(st.sampled_from([(1, 3, 2), (2, 1, 3)])))(x)


def splits(draw, x):
    if x.shape[-1] % 2:
        return x[..., min(1, x.shape[-1] - 1) :]
    first, second = ops.split(x, 2, axis=-1)
    if draw(st.booleans()):
        return ops.concatenate([second, layers.ReLU()(first)], axis=-1)
    return first * ops.sigmoid(second)


def slices(draw, x):
    kind = draw(st.sampled_from(["channels", "space", "both", "steps"]))
    if kind == "channels":
        return x[..., : x.shape[-1] - 1] if x.shape[-1] > 1 else x
    if kind == "space":
        return x[:, ::2, : x.shape[2], :]
    if kind == "both":
        return x[:, :1, :, -2:]
    return x[..., ::2]


def reductions(draw, x):
    """One channel of all, beside the others."""
    one = ops.mean(x, axis=-1, keepdims=True)
    return layers.Concatenate()([x, one]) if draw(st.booleans()) else x * ops.sigmoid(one)


def sequences(draw, x):
    """Rows of pixels as a sequence, and back."""
    _, height, width, channels = x.shape
    y = layers.Reshape((height * width, channels))(x)
    kind = draw(st.sampled_from(["conv1d", "depthwise1d", "pool", "attention"]))
    if kind == "conv1d":
        y = layers.Conv1D(draw(CHANNELS), 3, padding="causal", activation="relu")(y)
    elif kind == "depthwise1d":
        y = layers.DepthwiseConv1D(3, padding="same")(y)
    elif kind == "pool":
        y = layers.MaxPooling1D(2, strides=1, padding="same")(y)
    else:
        y = layers.MultiHeadAttention(2, draw(st.sampled_from([2, 3])))(y, y)
    return ops.reshape(y, (-1, height, width, y.shape[-1]))


def volumes(draw, x):
    height, width, channels = x.shape[1:]
    y = layers.Reshape((height, width, 1, channels))(x)
    y = layers.Conv3D(draw(CHANNELS), (3, 3, 1), padding="same")(y)
    return layers.Reshape((height, width, -1))(layers.BatchNormalization()(y))


def time_distributed(draw, x):
    inner = draw(st.sampled_from([layers.Dense, functools.partial(_conv1d, 3)]))
    return layers.TimeDistributed(inner(draw(CHANNELS)))(x)


def _conv1d(kernel, filters):
    return layers.Conv1D(filters, kernel, padding="same", activation="relu")


def recurrent(draw, x):
    """Reads the columns of each row at once: (height, width * channels)."""
    kind = draw(st.sampled_from([layers.LSTM, layers.GRU, layers.SimpleRNN]))
    layer = kind(draw(CHANNELS), return_sequences=True)
    if draw(st.booleans()):
        layer = layers.Bidirectional(layer)
    y = layer(layers.Reshape((x.shape[1], -1))(x))
    return layers.Reshape((x.shape[1], 1, -1))(y)


def shuffle(draw, x):
    """ShuffleNet's: channels of the parts take turns."""
    _, height, width, channels = x.shape
    parts = draw(st.sampled_from([n for n in (1, 2, 3) if channels % n == 0]))
    y = ops.reshape(x, (-1, height, width, parts, channels // parts))
    y = ops.transpose(y, (0, 1, 2, 4, 3))
    return ops.reshape(y, (-1, height, width, channels))


def packed(draw, x):
    """Neighbours of a row side by side, or rows of all channels: channels interleaved."""
    _, height, width, channels = x.shape
    if width % 2 == 0 and width * channels <= 24:
        return layers.Reshape((height, width // 2, 2 * channels))(x)
    return x


def normalization(draw, x):
    divisors = [n for n in (1, 2, 3) if x.shape[-1] % n == 0]
    kind = draw(st.sampled_from(["layer", "rms", "unit", "group", "space"]))
    if kind == "group":
        return layers.GroupNormalization(draw(st.sampled_from(divisors)))(x)
    return {
        "layer": layers.LayerNormalization,
        "rms": layers.RMSNormalization,
        "unit": layers.UnitNormalization,
        "space": functools.partial(layers.LayerNormalization, axis=(1, 2)),
    }[kind]()(x)


def odd(draw, x):
    return draw(st.sampled_from([lambda: Reversed()(x), lambda: ops.flip(x, axis=-1)]))()


def shared(draw, x):
    layer = layers.Conv2D(x.shape[-1], 3, padding="same", activation="relu")
    return layer(layer(x))


def nested(draw, x):
    inner = keras.Input(x.shape[1:])
    y = inner
    for _ in range(draw(st.integers(1, 2))):
        y = draw(st.sampled_from([convolution, batch_norm, depthwise, residual]))(draw, y)
    model = keras.Model(inner, y)
    once = model(x)
    if draw(st.booleans()):
        return layers.Add()([once, model(ops.relu(x))])
    return model(once) if once.shape == x.shape else once


def nested_sequential(draw, x):
    model = keras.Sequential(
        [
            keras.Input(x.shape[1:]),
            layers.Conv2D(draw(CHANNELS), 3, padding="same", activation="relu"),
            layers.BatchNormalization(),
            layers.Conv2D(draw(CHANNELS), 1),
        ]
    )
    return model(x)


# Steps with a branch


def residual(draw, x):
    """A branch of one or two layers, merged with what it came from."""
    y = x
    if draw(st.booleans()):
        y = layers.Conv2D(draw(CHANNELS), 3, padding="same", activation="relu")(y)
    y = layers.Conv2D(x.shape[-1], 1, use_bias=draw(st.booleans()))(y)
    return merged(draw, x, layers.BatchNormalization()(y) if draw(st.booleans()) else y)


def merged(draw, x, y):
    """`x` and `y` have one shape."""
    merges = [
        layers.Add(),
        layers.Subtract(),
        layers.Multiply(),
        layers.Average(),
        layers.Maximum(),
        layers.Minimum(),
        layers.Concatenate(),
        layers.Concatenate(axis=1 if x.shape[1] <= SMALL else -1),
        lambda pair: pair[0] + pair[1],
        lambda pair: pair[0] * ops.tanh(pair[1]),
        lambda pair: ops.concatenate(pair, axis=-1),
        lambda pair: ops.add(pair[0], ops.mean(pair[1], axis=(1, 2), keepdims=True)),
    ]
    return draw(st.sampled_from(merges))([x, y])


def dense_block(draw, x):
    """DenseNet's: what comes is kept, and more is put beside it."""
    return layers.Concatenate()([x, convolution_of_same_size(draw, x)])


def convolution_of_same_size(draw, x):
    return layers.Conv2D(draw(CHANNELS), 3, padding="same", activation="relu")(x)


def spatial_attention(draw, x):
    return layers.Multiply()([x, layers.Conv2D(1, 3, padding="same", activation="sigmoid")(x)])


COMMON = [convolution, depthwise, batch_norm, residual, dense_block, squeeze_excite, grouped]
STEPS = [
    *(COMMON * 2),
    separable,
    transposed,
    dense,
    einsum_dense,
    prelu,
    activation,
    pooling,
    resizing,
    arithmetic,
    transpositions,
    transposed_for_good,
    splits,
    slices,
    reductions,
    sequences,
    volumes,
    time_distributed,
    recurrent,
    shuffle,
    packed,
    normalization,
    odd,
    shared,
    nested,
    nested_sequential,
    spatial_attention,
]


def head(draw, x):
    kind = draw(st.sampled_from(["flatten", "average", "maximum", "image", "plain"]))
    if kind == "plain":
        return x
    if kind == "image":
        return layers.Conv2D(2, 1)(x)
    pool = {
        "flatten": layers.Flatten,
        "average": layers.GlobalAveragePooling2D,
        "maximum": layers.GlobalMaxPooling2D,
    }[kind]()
    return layers.Dense(3, activation=draw(st.sampled_from(["linear", "softmax"])))(pool(x))


@st.composite
def models(draw, steps=tuple(STEPS), most=7):
    """Returns a functional model with one or two image inputs and one to three outputs."""
    inputs = [keras.Input((8, 8, draw(st.integers(1, 4)))) for _ in range(draw(st.integers(1, 2)))]
    tensors = [convolution_of_same_size(draw, x) if draw(st.booleans()) else x for x in inputs]
    for _ in range(draw(st.integers(3, most))):
        x = draw(st.sampled_from(tensors[:-4:-1]))
        partners = [y for y in tensors if y.shape == x.shape]
        if len(partners) > 1 and draw(st.booleans()):
            tensors.append(merged(draw, x, draw(st.sampled_from(partners))))
        else:
            tensors.append(draw(st.sampled_from(steps))(draw, x))
    ends = [tensors[-1], *tensors[-3:-1][: draw(st.integers(0, 2))]]
    ends = [head(draw, x) for x in ends if not any(x is y for y in inputs)]
    model = keras.Model(_structure(inputs), _structure(ends))
    randomize(model, draw(st.integers(0, 2**16)))
    return model


def _structure(tensors):
    return tensors[0] if len(tensors) == 1 else tensors


def randomize(model, seed):
    """Gives every weight a random value of a size that keeps the activations near one."""
    random = np.random.default_rng(seed)
    for variable in model.weights:
        if not keras.backend.is_float_dtype(variable.dtype):
            continue  # a seed
        shape, name = variable.shape, variable.name
        if name in ("gamma", "moving_variance", "scale"):
            value = random.uniform(0.5, 1.5, shape)
        elif len(shape) < 2 or name in ("bias", "beta", "moving_mean", "alpha"):
            value = random.uniform(-0.5, 0.5, shape)
        else:
            value = random.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))
        variable.assign(value)


def samples(model, seed=0, count=2):
    """Returns one float32 array (count, ...) for each input of the model, standard normal."""
    random = np.random.default_rng(seed)
    return [random.normal(size=(count, *x.shape[1:])).astype(np.float32) for x in model.inputs]


def outputs(model, x):
    """Returns the model's outputs for arrays `x`, one for each input, as a list of arrays."""
    found = model(x if len(x) > 1 else x[0], training=False)
    return [keras.ops.convert_to_numpy(y) for y in keras.tree.flatten(found)]
