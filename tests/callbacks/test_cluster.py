import warnings

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tests.callbacks.conftest import distinct, small_model, zeros


def fit(model, data, *callbacks, epochs=2):
    return model.fit(*data, epochs=epochs, batch_size=32, verbose=0, callbacks=list(callbacks))


def test_each_kernel_keeps_few_values_after_every_step(data):
    model = small_model()
    counts = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            counts.append(distinct(model.get_layer("hidden")))

    callback = tfc.ClusterOnSchedule(tfc.clustering.KMeans(clusters=4), begin_step=5)
    history = fit(model, data, callback, Watch())
    assert counts[0] > 100
    assert all(count == 4 for count in counts[5:])
    assert history.history["distinct_values"] == [4, 4]


def test_centroids_take_the_mean_of_the_step(data):
    """One step of gradient descent moves a centroid by the mean gradient of its cluster."""
    model = small_model(optimizer=keras.optimizers.SGD(0.1))
    fit(model, data, tfc.ClusterOnSchedule(tfc.clustering.KMeans(clusters=4)), epochs=1)
    start = model.get_weights()
    free = small_model(optimizer=keras.optimizers.SGD(0.1))
    free.set_weights(start)
    batch = data[0][:32], data[1][:32]
    free.fit(*batch, batch_size=32, verbose=0)
    model.fit(*batch, batch_size=32, verbose=0, callbacks=[tfc.Preserve()])
    old, moved = start[0], free.get_weights()[0]
    expected = np.empty_like(old)
    for value in np.unique(old):
        expected[old == value] = moved[old == value].mean()
    np.testing.assert_allclose(model.get_weights()[0], expected, atol=1e-7)


def test_values_do_not_drift_without_gradient(data):
    model = small_model(optimizer=keras.optimizers.SGD(0.0))
    fit(model, data, tfc.ClusterOnSchedule(tfc.clustering.KMeans(clusters=3)), epochs=1)
    before = np.asarray(model.get_layer("hidden").kernel)
    fit(model, data, tfc.Preserve(), epochs=2)
    np.testing.assert_array_equal(before, np.asarray(model.get_layer("hidden").kernel))


def test_zeros_are_kept_beside_the_clusters(data):
    model = small_model()
    fit(
        model,
        data,
        tfc.PruneOnSchedule(tfc.schedules.Polynomial(end=0.5, end_step=8), update_every=2),
        tfc.ClusterOnSchedule(tfc.clustering.KMeans(clusters=4), begin_step=10),
    )
    for layer in model.layers:
        assert zeros(layer) == 0.5
        assert distinct(layer) == 4


def test_blocks_share_a_codebook(data):
    model = small_model()
    fit(model, data, tfc.ClusterOnSchedule({"kmeans": {"clusters": 4}}, block=(2, 2)))
    w = np.asarray(model.get_layer("hidden").kernel)
    blocks = w.reshape(4, 2, 8, 2).transpose(0, 2, 1, 3).reshape(-1, 4)
    assert len(np.unique(blocks, axis=0)) == 4


def test_rules_change_the_number_of_clusters(data):
    model = small_model()
    rules = [{"layers": "head", "clusters": 2}, {"layers": "hidden", "clusters": 8}]
    fit(model, data, tfc.ClusterOnSchedule("kmeans", rules=rules), epochs=1)
    assert distinct(model.get_layer("head")) == 2
    assert distinct(model.get_layer("hidden")) == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "kmean"}, "Did you mean 'kmeans'?"),
        ({"method": {"kmeans": {"clusters": 1}}}, r"\[2, 65536\] or 'auto'. Received: clusters=1"),
        ({"method": {"kmeans": {"cluster": 4}}}, "Did you mean 'clusters'?"),
        ({"begin_step": -1}, "begin_step=-1"),
        ({"block": (0, 1)}, r"block=\(0, 1\)"),
        ({"update_every": 0}, "update_every=0"),
    ],
)
def test_bad_arguments_are_one_clear_line(arguments, message):
    with pytest.raises(tfc.InputError, match=message) as caught:
        tfc.ClusterOnSchedule(**arguments)
    assert "\n" not in str(caught.value)


def test_more_clusters_than_weights_stop_before_training(data):
    model = small_model()
    with pytest.raises(tfc.InputError, match="head/kernel.*48 weights.*clusters=64"):
        fit(model, data, tfc.ClusterOnSchedule({"kmeans": {"clusters": 64}}))


def test_a_step_that_never_comes_is_a_warning(data):
    early, late = (
        tfc.ClusterOnSchedule("kmeans", begin_step=32),
        tfc.ClusterOnSchedule("kmeans", begin_step=33),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fit(small_model(), data, early, tfc.PruneOnSchedule({"polynomial": {"end": 0.5}}))
    with pytest.warns(UserWarning, match="before begin_step=33: no kernel was clustered"):
        fit(small_model(), data, late)
    schedule = tfc.schedules.Polynomial(end=0.5, end_step=100)
    with pytest.warns(UserWarning, match="before end_step=100: the final sparsity"):
        fit(small_model(), data, tfc.PruneOnSchedule(schedule))


@pytest.mark.parametrize("method", ["kmeans", "gmm"])
def test_the_number_of_clusters_may_be_left_open(data, method):
    model = small_model()
    callback = tfc.ClusterOnSchedule({method: {"clusters": "auto"}}, update_every=8)
    fit(model, data, callback)
    assert 2 <= distinct(model.get_layer("head")) <= 48
