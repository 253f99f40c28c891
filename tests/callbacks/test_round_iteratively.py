"""Kernels that move onto their grid bit by bit, and the codes that the file holds in the end."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfcompress as tfc
from tests.callbacks.conftest import small_model
from tfcompress import quantization, tflite
from tfcompress.errors import InputError
from tfcompress.quantization import granularity
from tfcompress.tflite import flatbuffer as fb
from tfcompress.tflite.macs import KERNEL_INPUT

layers = keras.layers


def codes(w, bits, axes=(1,)):
    """The codes of a kernel all of whose weights are on a grid, which its channels' ends tell."""
    grid = quantization.fit(w, axes, codes=quantization.Codes(bits))
    found = granularity.quantize(w, grid)
    np.testing.assert_array_equal(grid.dequantize(found), w)  # to the last bit
    return found


def kernel(layer):
    return keras.ops.convert_to_numpy(layer.kernel)


def fit(model, data, *callbacks, epochs=4, **arguments):
    return model.fit(*data, epochs=epochs, batch_size=32, verbose=0, callbacks=callbacks)


@pytest.mark.parametrize("bits", [2, 8])
def test_all_weights_end_on_the_grid(data, bits):
    model = small_model()
    fit(model, data, epochs=4)
    before = model.evaluate(*data, verbose=0, return_dict=True)["loss"]
    history = fit(model, data, tfc.RoundIteratively(bits, data=data), epochs=8)
    for layer in model.layers:
        found = codes(kernel(layer), bits)
        assert np.abs(found).max(axis=0).min() == 2 ** (bits - 1) - 1
    rounded = history.history["rounded"]
    assert rounded == sorted(rounded) and 0.4 < rounded[0] < 0.8 and rounded[-1] == 1
    assert "rounding_seconds" in history.history
    after = model.evaluate(*data, verbose=0, return_dict=True)["loss"]
    assert after < before * (1.0 if bits > 2 else 2.5)  # the rest made up for the rounding


def test_training_beats_rounding_at_once(data):
    model = small_model()
    fit(model, data, epochs=20)
    at_once = keras.models.clone_model(model)
    at_once.set_weights(model.get_weights())
    for layer in at_once.layers:
        grid = quantization.clipped_grid(kernel(layer), None, (1,), 2)
        layer.kernel.assign(grid.dequantize(granularity.quantize(kernel(layer), grid)))
    at_once.compile(loss=model.loss)
    fit(model, data, tfc.RoundIteratively(2, data=data), epochs=8)
    losses = [m.evaluate(*data, verbose=0, return_dict=True)["loss"] for m in (model, at_once)]
    assert losses[0] < 0.7 * losses[1]


@pytest.mark.parametrize(
    "arguments",
    [
        {"steps_per_execution": 5},
        {"jit_compile": True},
        {"run_eagerly": True},
        {"optimizer": "moving_average"},
        {"optimizer": "weight_decay"},
    ],
    ids=str,
)
def test_however_the_model_is_compiled(arguments, data):
    optimizers = {
        "weight_decay": keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=1e-3),
        "moving_average": keras.optimizers.Adam(use_ema=True),
    }
    if arguments.get("optimizer") in optimizers:
        arguments = arguments | {"optimizer": optimizers[arguments["optimizer"]]}
    model = small_model(**arguments)
    fit(model, data, tfc.RoundIteratively(4), epochs=2)
    for layer in model.layers:
        codes(kernel(layer), 4)


def test_rounded_weights_stay_to_the_last_bit(data):
    """Between two rounds what is rounded does not move, and what is not does."""
    model = small_model()
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            projection = model.layers[0].kernel.constraint
            seen.append((projection.rounded.copy(), kernel(model.layers[0])))

    callback = tfc.RoundIteratively(4, shares=(0.5, 1.0), update_every=10)
    fit(model, data, callback, Watch(), epochs=1)
    first, second = seen[0], seen[8]
    assert 0.5 <= first[0].mean() < 0.7
    np.testing.assert_array_equal(first[1][first[0]], second[1][first[0]])
    assert (first[1] != second[1])[~first[0]].mean() > 0.8
    limit = np.abs(first[1]).max(axis=0)
    assert (np.abs(second[1]) <= limit).all()  # the free ones are clipped
    assert seen[-1][0].all()


def test_a_killed_fit_resumes(data, tmp_path):
    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    def run(*extra, backup):
        keras.utils.set_random_seed(1)
        model = small_model()
        restore = keras.callbacks.BackupAndRestore(tmp_path / backup)
        every = [tfc.RoundIteratively(4, data=data), *extra, restore]
        model.fit(*data, epochs=4, batch_size=32, verbose=0, shuffle=False, callbacks=every)
        return model

    undisturbed = run(backup="a")
    with pytest.raises(KeyboardInterrupt):
        run(Kill(), backup="b")
    resumed = run(backup="b")
    for one, other in zip(undisturbed.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_zeros_and_clusters_are_kept(data):
    model = small_model()
    before = [
        tfc.PruneOnSchedule(tfc.schedules.Constant(0.5)),
        tfc.ClusterOnSchedule(tfc.clustering.KMeans(clusters=6)),
    ]
    fit(model, data, *before, epochs=1)
    old = [kernel(layer) for layer in model.layers]
    tfc.preserve(model)
    fit(model, data, tfc.RoundIteratively(4), epochs=4)
    for w, layer in zip(old, model.layers, strict=True):
        new = kernel(layer)
        assert (new[w == 0] == 0).all()
        codes(new, 4, ())  # one scale, since the clusters reach over channels
        for value in np.unique(w):
            assert len(np.unique(new[w == value])) == 1


def images_model():
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(6, 3, use_bias=False, name="conv"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.DepthwiseConv2D(3, name="depthwise"),
            layers.Flatten(),
            layers.Dense(3, name="head"),
        ]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def stored(content):
    flatbuffer = fb.parse(content)
    graph = flatbuffer.subgraphs[0]
    for operator in graph.operators:
        place = KERNEL_INPUT.get(fb.operator_name(flatbuffer, operator))
        if place is not None:
            yield fb.data(flatbuffer, graph.tensors[operator.inputs[place]])


@pytest.mark.parametrize(
    ("bits", "words"),
    [(8, {"scheme": "int8"}), (4, {"scheme": "int4", "target": "reference"})],
    ids=["int8", "int4"],
)
def test_the_file_holds_just_these_codes(bits, words):
    random = np.random.default_rng(0)
    x, y = random.normal(size=(128, 8, 8, 2)).astype(np.float32), random.integers(0, 3, 128)
    model = images_model()
    with pytest.raises(InputError, match="must have no BatchNorm that can be folded"):
        model.fit(x, y, verbose=0, callbacks=[tfc.RoundIteratively(bits)])
    model.fit(x, y, verbose=0)
    folded = tfc.fold_batch_norm(model)
    folded.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    folded.fit(x, y, epochs=4, verbose=0, callbacks=[tfc.RoundIteratively(bits, data=(x, y))])
    axes = {"conv": (3,), "depthwise": (2, 3), "head": (1,)}
    expected = [codes(kernel(folded.get_layer(name)), bits, axes[name]) for name in axes]
    conv, depthwise, head = stored(tflite.convert(folded, samples=x, **words))
    np.testing.assert_array_equal(conv, expected[0].transpose(3, 0, 1, 2))
    np.testing.assert_array_equal(depthwise, expected[1].transpose(3, 0, 1, 2))
    np.testing.assert_array_equal(head, expected[2].T)


def test_a_quantize_aware_model_keeps_its_own_granularity():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(128, 8, 8, 2)).astype(np.float32), random.integers(0, 3, 128)
    model = tfc.quantize_aware(images_model(), samples=x)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, epochs=4, verbose=0, callbacks=[tfc.RoundIteratively(8)])
    head = kernel(model.get_layer("head").layer)
    expected = codes(head, 8, ())
    *_, found = stored(tflite.convert(model))
    np.testing.assert_array_equal(found, expected.T)
    assert tflite.compare(model, tflite.convert(model), x).max_abs_error < 1e-5


def test_rules(data):
    model = small_model()
    rules = [{"layers": "hidden", "bits": 2, "granularity": "per_tensor", "order": "magnitude"}]
    callback = tfc.RoundIteratively(8, rules=[*rules, {"layers": "head", "skip": "too few"}])
    fit(model, data, callback)
    assert len(np.unique(kernel(model.layers[0]))) == 3
    assert len(np.unique(kernel(model.layers[1]))) > 40 and callback.skipped == {
        "head/kernel": "too few"
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 1}, r"bits of RoundIteratively must be a whole number in \[2, 8\]"),
        ({"shares": (0.5, 0.4, 1.0)}, "shares of RoundIteratively must rise"),
        ({"shares": (0.5,)}, "end with 1"),
        ({"order": "nearst"}, "Unknown order .* Did you mean 'nearest'"),
        ({"granularity": "per_row"}, "Unknown granularity of RoundIteratively 'per_row'"),
        ({"update_every": 0}, "update_every of RoundIteratively"),
        ({"rules": [{"layers": "head", "bits": 99}]}, "bits of RoundIteratively"),
    ],
)
def test_what_cannot_be_used(arguments, message, data):
    with pytest.raises(InputError, match=message):
        fit(small_model(), data, tfc.RoundIteratively(**arguments))


def test_a_training_that_ends_too_soon_says_so(data):
    with pytest.warns(UserWarning, match="training ended before step 30: not all weights"):
        fit(small_model(), data, tfc.RoundIteratively(4, update_every=10), epochs=1)
    endless = tf.data.Dataset.from_tensor_slices(data).batch(32).filter(lambda x, y: True)
    with pytest.raises(InputError, match="must be given where the number of training steps"):
        small_model().fit(endless, verbose=0, callbacks=[tfc.RoundIteratively(4)])
