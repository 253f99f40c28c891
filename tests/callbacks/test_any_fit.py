"""The callbacks under everything that Keras' `fit` and its own callbacks do."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfcompress as tfc
from tests.callbacks.conftest import distinct, small_model, zeros


def callbacks(update_every=None):
    method = tfc.clustering.KMeans(clusters=4)
    return [
        tfc.PruneOnSchedule(tfc.schedules.Polynomial(end=0.5, end_step=12), update_every=4),
        tfc.ClusterOnSchedule(method, begin_step=16, update_every=update_every),
    ]


def assert_compressed(*layers):
    for layer in layers:
        assert zeros(layer) == 0.5
        assert distinct(layer) <= 4


@pytest.mark.parametrize(
    "arguments",
    [
        {"steps_per_execution": 5},
        {"jit_compile": True},
        {"jit_compile": True, "steps_per_execution": 4},
        {"run_eagerly": True},
        {"optimizer": "weight_decay"},
        {"optimizer": "gradient_accumulation"},
        {"optimizer": "moving_average"},
        {"optimizer": "loss_scale"},
    ],
    ids=str,
)
@pytest.mark.parametrize("update_every", [None, 9], ids=["static", "dynamic"])
def test_compile_arguments(arguments, update_every, data):
    optimizers = {
        "weight_decay": keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=1e-3),
        "gradient_accumulation": keras.optimizers.Adam(gradient_accumulation_steps=2),
        "moving_average": keras.optimizers.Adam(use_ema=True),
        "loss_scale": keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()),
    }
    if arguments.get("optimizer") in optimizers:
        arguments = arguments | {"optimizer": optimizers[arguments["optimizer"]]}
    model = small_model(**arguments)
    model.fit(*data, epochs=2, batch_size=32, verbose=0, callbacks=callbacks(update_every))
    assert_compressed(*model.layers)


def test_mixed_precision(data):
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = small_model()
        model.fit(*data, epochs=2, batch_size=32, verbose=0, callbacks=callbacks())
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert_compressed(*model.layers)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden = keras.layers.Dense(16, activation="relu")
        self.inner = keras.Sequential([keras.layers.Dense(8), keras.layers.ReLU()])
        self.heads = [keras.layers.Dense(3)]

    def call(self, x):
        return self.heads[0](self.inner(self.hidden(x)))


def test_subclassed_and_nested_models(data):
    model = Subclassed()
    model.compile("adam", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(*data, epochs=2, batch_size=32, verbose=0, callbacks=callbacks())
    assert_compressed(model.hidden, model.inner.layers[0], *model.heads)


def test_shared_layers_count_once(data):
    x = keras.Input((8,))
    shared = keras.layers.Dense(8, name="shared")
    model = keras.Model(x, keras.layers.Dense(3, name="head")(shared(shared(x))))
    model.compile("adam", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(*data, epochs=2, batch_size=32, verbose=0, callbacks=callbacks())
    assert_compressed(shared, model.get_layer("head"))


def test_checkpoints_are_compressed_to_the_last_bit(data, tmp_path):
    model = small_model()
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "step-{batch}.keras", save_freq=8)
    model.fit(*data, epochs=2, batch_size=32, verbose=0, callbacks=[*callbacks(), checkpoint])
    loaded = keras.models.load_model(tmp_path / "step-8.keras")
    assert_compressed(*loaded.layers)
    final = keras.models.load_model(tmp_path / "step-16.keras")
    for saved, now in zip(final.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(saved, now)


@pytest.mark.parametrize("first", [True, False], ids=["backup first", "backup last"])
@pytest.mark.parametrize("killed_in", [1, 2, 3])
def test_a_killed_fit_resumes_with_its_masks(data, tmp_path, first, killed_in):
    """A fit that dies in an epoch and is run again ends like one that never died."""

    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == killed_in:
                raise KeyboardInterrupt

    def run(*extra, backup):
        keras.utils.set_random_seed(1)
        model = small_model()
        restore = keras.callbacks.BackupAndRestore(tmp_path / backup)
        ours = [*callbacks(), *extra]
        every = [restore, *ours] if first else [*ours, restore]
        model.fit(*data, epochs=4, batch_size=32, verbose=0, shuffle=False, callbacks=every)
        return model

    undisturbed = run(backup="a")
    with pytest.raises(KeyboardInterrupt):
        run(Kill(), backup="b")
    resumed = run(backup="b")
    for one, other in zip(undisturbed.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert_compressed(*resumed.layers)


@pytest.mark.parametrize("first", [True, False], ids=["stopping first", "stopping last"])
def test_early_stopping_restores_compressed_weights(data, first):
    model = small_model(optimizer=keras.optimizers.Adam(0.3))
    stop = keras.callbacks.EarlyStopping(
        "loss", patience=1, restore_best_weights=True, start_from_epoch=2
    )
    every = [stop, *callbacks()] if first else [*callbacks(), stop]
    history = model.fit(*data, epochs=40, batch_size=32, verbose=0, callbacks=every)
    assert len(history.epoch) < 40
    assert_compressed(*model.layers)


@pytest.mark.parametrize("compiled", [True, False])
def test_custom_training_loop(data, compiled):
    model = small_model()
    if not compiled:
        model = keras.Sequential.from_config(model.get_config())
    optimizer = keras.optimizers.Adam()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    steps = callbacks()

    @tf.function
    def train_step(x, y):
        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=True))
        optimizer.apply(tape.gradient(value, model.trainable_variables), model.trainable_variables)

    for callback in steps:
        callback.set_model(model)
    for step in range(32):
        for callback in steps:
            callback.apply(step)
        train_step(data[0][:32], data[1][:32])
    for callback in steps:
        callback.apply(32)
    assert_compressed(*model.layers)


def test_preserve_keeps_what_it_finds(data, tmp_path):
    model = small_model()
    model.fit(*data, epochs=2, batch_size=32, verbose=0, callbacks=callbacks())
    model.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    before = [np.asarray(layer.kernel) for layer in loaded.layers]
    loaded.fit(*data, epochs=2, batch_size=32, verbose=0, callbacks=[tfc.Preserve()])
    assert_compressed(*loaded.layers)
    for old, layer in zip(before, loaded.layers, strict=True):
        np.testing.assert_array_equal(old == 0, np.asarray(layer.kernel) == 0)
        assert (old != np.asarray(layer.kernel)).any()


def test_replicas_hold_the_same_masks(tmp_path):
    """In a process of its own: logical devices are fixed before TensorFlow starts."""
    import subprocess
    import sys
    import textwrap

    script = textwrap.dedent(
        """
        import keras, numpy as np, tensorflow as tf
        cpu = tf.config.list_physical_devices("CPU")[0]
        two = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpu, two)
        import tfcompress as tfc
        from tests.callbacks.conftest import small_model
        rng = np.random.default_rng(0)
        data = rng.normal(size=(512, 8)).astype("float32"), rng.integers(0, 3, 512)
        with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
            model = small_model()
        model.fit(*data, epochs=2, batch_size=32, verbose=0, callbacks=[
            tfc.PruneOnSchedule(tfc.schedules.Polynomial(end=0.5, end_step=12), update_every=4),
            tfc.ClusterOnSchedule(tfc.clustering.KMeans(clusters=4), begin_step=16)])
        for layer in model.layers:
            replicas = [value.numpy() for value in layer.kernel.value.values]
            assert len(replicas) == 2
            np.testing.assert_array_equal(*replicas)
            assert (replicas[0] == 0).mean() == 0.5
            assert len(np.unique(replicas[0])) <= 5
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
