"""FreezeQuantization: grids stand still from the step that was asked for."""

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tfcompress.wrappers import FakeQuantize, QuantizedLayer

layers = keras.layers


def data(n=80):
    x = np.random.default_rng(0).normal(size=(n, 8)).astype(np.float32)
    x *= np.linspace(1, 4, n, dtype=np.float32)[:, None]
    return x, (x[:, 0] > 0).astype("int32")


def plain():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input((8,)), layers.Dense(6, activation="relu"), layers.Dense(2)]
    )


def model(**words):
    return tfc.quantize_aware(plain(), samples=data()[0][:16], **words)


def fit(quantized, callbacks=(), epochs=2, **options):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    quantized.compile(keras.optimizers.Adam(0.01), loss=loss, **options)
    x, y = data()
    quantized.fit(
        x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0, callbacks=list(callbacks)
    )
    return quantized


def ranges(quantized):
    return [np.array(x.range) for x in quantized.layers if isinstance(x, FakeQuantize)]


def input_range(steps):
    """The range of the model's input after so many steps: a moving average, by hand."""
    x = data()[0]
    low, high = x[:16].min(), x[:16].max()
    for step in range(steps):
        batch = x[8 * (step % 10) :][:8]
        low, high = low + 0.01 * (batch.min() - low), high + 0.01 * (batch.max() - high)
    return low, high


@pytest.mark.parametrize("options", [{}, {"steps_per_execution": 5}, {"jit_compile": True}])
def test_observers_stop_at_the_step(options):
    quantized = fit(model(), [tfc.FreezeQuantization(observers_step=13)], **options)
    np.testing.assert_allclose(ranges(quantized)[0], input_range(13), rtol=1e-5)
    fit(quantized, epochs=1)  # free again
    assert not np.allclose(ranges(quantized)[0], input_range(13), rtol=1e-5)


def widths(quantized):
    return [float(x.width) for x in quantized.layers if isinstance(x, FakeQuantize)] + [
        np.array(x.limit) for x in quantized.layers if isinstance(x, QuantizedLayer)
    ]


@pytest.mark.parametrize("options", [{}, {"steps_per_execution": 4}])
def test_learned_steps_stop_too(options):
    quantized = fit(model(learn="lsq"), [tfc.FreezeQuantization(learned_step=10)], **options)
    stopped = fit(model(learn="lsq"), epochs=1)  # ten steps
    for one, other in zip(widths(quantized), widths(stopped), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    kernels = [np.array(x.layers[2].layer.kernel) for x in (quantized, stopped)]
    assert not np.allclose(*kernels)


def test_a_resumed_fit_stops_at_the_same_step(tmp_path):
    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    def run(backup, *extra):
        freeze = tfc.FreezeQuantization(observers_step=15, learned_step=15)
        restore = keras.callbacks.BackupAndRestore(tmp_path / backup)
        rules = [{"layers": "dense.*", "learn": "lsq"}]
        return fit(model(rules=rules), [restore, freeze, *extra], epochs=4)

    undisturbed = run("a")
    with pytest.raises(KeyboardInterrupt):
        run("b", Kill())
    for one, other in zip(undisturbed.get_weights(), run("b").get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tfc.FreezeQuantization(), "needs observers_step, learned_step or"),
        (lambda: tfc.FreezeQuantization(-1), "at least 0. Received: observers_step=-1"),
        (lambda: fit(plain(), [tfc.FreezeQuantization(5)]), "needs a model of quantize_aware"),
    ],
)
def test_bad_input_is_one_clear_line(make, message):
    with pytest.raises(tfc.InputError, match=message):
        make()


def test_what_never_comes_and_what_has_nothing_to_stop_is_said():
    with pytest.warns(UserWarning, match="training ended before step 500"):
        fit(model(), [tfc.FreezeQuantization(500)], epochs=1)
    for words in ({"learn": "lsq"}, {"ranges": "mse"}):
        with pytest.warns(UserWarning, match="nothing to stop: ranges that samples gave stay"):
            fit(model(**words), [tfc.FreezeQuantization(1)], epochs=1)


def test_statistics_of_a_batch_norm_that_stayed_float_stop():
    x = keras.Input((8,))
    steps = layers.BatchNormalization(axis=1)(layers.Reshape((2, 4))(x))  # not over channels
    plain = keras.Model(x, layers.Dense(2)(layers.Flatten()(steps)))
    quantized = tfc.quantize_aware(plain, samples=data()[0])
    (norm,) = [x for x in quantized._flatten_layers() if isinstance(x, layers.BatchNormalization)]
    seen = []
    record = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(np.array(norm.moving_mean))
    )
    fit(quantized, [tfc.FreezeQuantization(statistics_step=3), record])
    assert not np.array_equal(seen[1], seen[2])
    np.testing.assert_array_equal(seen[-1], seen[2])
    assert norm.trainable
    with pytest.raises(tfc.InputError, match="a BatchNorm that was left in float"):
        fit(model(), [tfc.FreezeQuantization(statistics_step=3)])
