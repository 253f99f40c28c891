import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from keras import layers

from tfcompress.errors import InputError
from tfcompress.weights import from_blocks, kernels, matrix_shape, real_entries, to_blocks


def axes_of(model):
    return {kernel.path: kernel.output_axes for kernel in kernels(model)}


def functional():
    inner = keras.Sequential(
        [
            keras.Input((8, 8, 4)),
            layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise"),
            layers.SeparableConv2D(4, 3, name="separable"),
            layers.Conv2DTranspose(5, 2, name="transposed"),
        ],
        name="inner",
    )
    images = keras.Input((8, 8, 3))
    x = layers.PReLU()(layers.BatchNormalization()(layers.Conv2D(4, 1, name="conv")(images)))
    x = layers.Reshape((5, 25))(inner(x))
    shared = layers.Dense(25, name="shared")
    x = shared(shared(x))
    x = layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    x = layers.TimeDistributed(layers.Dense(6, name="wrapped"), name="wrapped")(x)
    return keras.Model(images, layers.Bidirectional(layers.LSTM(3), name="both")(x))


@keras.saving.register_keras_serializable("tfcompress_tests")
class Subclassed(keras.Model):
    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.embedding = layers.Embedding(10, 4)
        self.recurrent = layers.RNN(layers.GRUCell(3))
        self.blocks = [layers.Dense(3), layers.Dense(3)]
        self.tail = keras.Sequential([layers.Dense(5), layers.Dense(6)])
        self.last = layers.Dense(2, name="logits")

    def call(self, tokens):
        x = self.recurrent(self.embedding(tokens))
        for block in self.blocks:
            x = block(x)
        return self.last(self.tail(x))


def test_kernels_of_a_nested_functional_model():
    assert axes_of(functional()) == {
        "conv/kernel": (3,),
        "inner/depthwise/kernel": (2, 3),
        "inner/separable/depthwise_kernel": (2, 3),
        "inner/separable/pointwise_kernel": (3,),
        "inner/transposed/kernel": (2,),
        "shared/kernel": (1,),
        "attention/query/kernel": (1, 2),
        "attention/key/kernel": (1, 2),
        "attention/value/kernel": (1, 2),
        "attention/attention_output/kernel": (2,),
        "wrapped/kernel": (1,),
        "both/forward_lstm/cell/kernel": (1,),
        "both/forward_lstm/cell/recurrent_kernel": (1,),
        "both/backward_lstm/cell/kernel": (1,),
        "both/backward_lstm/cell/recurrent_kernel": (1,),
    }


def test_output_axes_count_what_the_kernel_puts_out():
    for kernel in kernels(functional()):
        channels = np.prod([kernel.variable.shape[axis] for axis in kernel.output_axes])
        if kernel.path == "inner/depthwise/kernel":
            assert channels == 8
        elif kernel.path == "inner/transposed/kernel":
            assert channels == 5


def test_kernels_of_a_subclassed_model():
    model = Subclassed()
    model(np.ones((1, 4), np.int32))
    assert list(axes_of(model)) == [
        "embedding/embeddings",
        "recurrent/cell/kernel",
        "recurrent/cell/recurrent_kernel",
        "blocks/kernel",
        "blocks_1/kernel",
        "tail/dense/kernel",
        "tail/dense_1/kernel",
        "logits/kernel",
    ]


@pytest.mark.parametrize("build", [functional, Subclassed])
def test_paths_survive_saving_and_loading(build, tmp_path):
    model = build()
    if build is Subclassed:
        model(np.ones((1, 4), np.int32))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert axes_of(loaded) == axes_of(model)
    for ours, theirs in zip(kernels(model), kernels(loaded), strict=True):
        np.testing.assert_array_equal(ours.value(), theirs.value())


def test_value_is_a_float32_copy():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, dtype="bfloat16")])
    (kernel,) = kernels(model)
    value = kernel.value()
    value[:] = 0
    assert value.dtype == np.float32 and kernel.value().any()


def test_mirrored_variables():
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        model = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="dense")])
    (kernel,) = kernels(model)
    assert kernel.path == "dense/kernel" and kernel.value().shape == (3, 2)


def test_what_is_not_a_built_model():
    for model in (keras.Sequential([layers.Dense(1)]), keras.Sequential(), Subclassed()):
        with pytest.raises(InputError, match="must be built"):
            kernels(model)
    with pytest.raises(InputError, match="must be a Keras 3 model"):
        kernels(layers.Dense(1))


@given(
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=4).map(tuple),
    block=st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_blocks_round_trip_exactly(shape, block):
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    blocks, real = to_blocks(array, block), real_entries(shape, block)
    assert blocks.dtype == np.float32 and blocks.shape == real.shape
    assert blocks.shape[1] == block[0] * block[1]
    np.testing.assert_array_equal(from_blocks(blocks, shape, block), array)
    assert sorted(blocks[real]) == sorted(array.ravel())
    assert set(blocks.ravel()) == set(array.ravel())


def test_blocks_are_neighbours_along_inputs_and_outputs():
    array = np.arange(2 * 2 * 3 * 4, dtype=np.float32).reshape(2, 2, 3, 4)
    np.testing.assert_array_equal(to_blocks(array, (1, 4))[1], array[0, 0, 1])
    np.testing.assert_array_equal(to_blocks(array, (3, 1))[1], array[0, 0, :, 1])
    depthwise = np.arange(9 * 8, dtype=np.float32).reshape(3, 3, 8, 1)
    np.testing.assert_array_equal(to_blocks(depthwise, (1, 4))[1], depthwise[0, 0, 4:, 0])


def test_scalars_are_a_view():
    array = np.ones((3, 4), np.float32)
    assert np.shares_memory(to_blocks(array), array)
    assert matrix_shape((5,)) == (5, 1)
