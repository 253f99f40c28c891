"""Dynamic clustering: weights change their cluster while they train."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfcompress as tfc
from tests.callbacks.conftest import distinct, small_model, zeros

NEVER = 10**6


def fit(model, data, *callbacks, epochs=2, **arguments):
    return model.fit(
        *data, epochs=epochs, batch_size=32, verbose=0, callbacks=list(callbacks), **arguments
    )


def test_weights_change_their_cluster_between_updates_and_each_step_keeps_the_values_few(data):
    model = small_model()
    labels, counts = [], []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            values, found = np.unique(model.get_layer("hidden").kernel, return_inverse=True)
            counts.append(len(values))
            labels.append(found.ravel())

    fit(model, data, tfc.ClusterOnSchedule(clusters=6, update_every=NEVER), Watch())
    assert set(counts) == {6}
    assert sum(not np.array_equal(a, b) for a, b in zip(labels, labels[1:], strict=False)) > 4


@pytest.mark.parametrize(
    "arguments, length, moving",
    [({}, True, 24), ({"freeze_step": 6}, True, 6), ({}, False, 25)],
    ids=str,
)
def test_weights_stay_in_their_cluster_at_the_end(data, arguments, length, moving):
    model = small_model(optimizer=keras.optimizers.Adam(0.05))
    together, values = [], []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            w = np.ravel(model.get_layer("hidden").kernel)
            values.append(np.unique(w))
            together.append(np.equal.outer(w, w))

    # 32 steps: 24 and a last quarter. Where Keras finds the end of data in a step that has none,
    # it may count this one, too.
    clusters = tfc.ClusterOnSchedule(clusters=6, update_every=3, **arguments)
    batches = tf.data.Dataset.from_tensor_slices(data).batch(32).filter(lambda x, y: True)
    if length:
        batches = batches.apply(tf.data.experimental.assert_cardinality(16))
    model.fit(batches, epochs=2, verbose=0, callbacks=[clusters, Watch()])
    assert len(together) == 32
    same = [np.array_equal(a, b) for a, b in zip(together, together[1:], strict=False)]
    assert not all(same[moving - 4 : moving - 1])
    assert all(same[moving - 1 :])
    assert not any(np.array_equal(a, b) for a, b in zip(values, values[1:], strict=False))


def test_dynamic_clusters_learn_what_static_ones_cannot(data):
    def loss(update_every):
        keras.utils.set_random_seed(2)
        model = small_model()
        callback = tfc.ClusterOnSchedule(clusters=3, update_every=update_every)
        return fit(model, data, callback, epochs=12).history["loss"][-1]

    assert loss(NEVER) < 0.8 * loss(None)


def test_clusters_are_found_again_in_the_latent_values(data):
    rng = np.random.default_rng(3)
    w = rng.normal(size=(8, 16)).astype("float32")
    model = small_model(optimizer=keras.optimizers.SGD(0.0))
    model.layers[0].set_weights([w, np.zeros(16)])
    # Evenly spaced values at first; k-means of the very same latent values then.
    method = tfc.clustering.KMeans(clusters=4)
    fit(model, data, tfc.ClusterOnSchedule("linear", clusters=4, update_every=5), epochs=1)
    linear = np.unique(model.layers[0].kernel)
    np.testing.assert_allclose(linear, np.unique(tfc.cluster(model, "linear", 4).layers[0].kernel))
    model.layers[0].set_weights([w, np.zeros(16)])
    fit(model, data, tfc.ClusterOnSchedule(method, update_every=5), epochs=1)
    expected = method.fit(w.reshape(-1, 1)).decode().reshape(w.shape)
    np.testing.assert_allclose(model.layers[0].kernel, expected, atol=1e-6)


def test_zeros_of_pruning_stay_while_the_others_move(data):
    model = small_model()
    schedule = tfc.schedules.Polynomial(end=0.5, end_step=20)
    history = fit(
        model,
        data,
        tfc.PruneOnSchedule(schedule, update_every=2),
        tfc.ClusterOnSchedule(clusters=4, begin_step=4, update_every=NEVER),
    )
    for layer in model.layers:
        assert zeros(layer) == 0.5
        assert distinct(layer) <= 4
    assert history.history["distinct_values"][-1] <= 4


@pytest.mark.parametrize("form", [{}, {"per": "channel"}, {"block": (2, 1)}], ids=str)
def test_an_earlier_epochs_weights_keep_the_clusters_that_they_have(data, form):
    model = small_model(optimizer=keras.optimizers.Adam(0.05))
    saved = []

    class Save(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            saved.append(model.get_weights())

        def on_train_end(self, logs=None):
            model.set_weights(saved[0])

    callback = tfc.ClusterOnSchedule(clusters=3, update_every=NEVER, **form)
    fit(model, data, Save(), callback, epochs=3)
    for before, after in zip(saved[0], model.get_weights(), strict=True):
        np.testing.assert_allclose(before, after, atol=1e-6)


def test_a_killed_fit_goes_on_with_few_values(data, tmp_path):
    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    def run(*extra):
        model = small_model()
        clusters = tfc.ClusterOnSchedule(clusters=4, update_every=NEVER)
        fit(model, data, clusters, *extra, keras.callbacks.BackupAndRestore(tmp_path / "backup"))
        return model

    with pytest.raises(KeyboardInterrupt):
        run(Kill())
    model = run()
    assert [distinct(layer) for layer in model.layers] == [4, 4]
