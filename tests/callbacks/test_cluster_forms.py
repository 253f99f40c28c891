"""Clusters while training: sums of gradients, levels, channels, and codes of the int8 grid."""

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tests.callbacks.conftest import small_model, zeros
from tfcompress.weights import to_blocks

FORMS = {
    "channel": {"clusters": 3, "per": "channel"},
    "levels": {"clusters": 3, "block": (2, 1), "levels": 2},
    "sum": {"clusters": 4, "gradients": "sum"},
    "root": {"clusters": 4, "gradients": "root"},
    "levels, root": {"clusters": 3, "block": (2, 1), "levels": 2, "gradients": "root"},
    "root, dynamic": {"clusters": 4, "gradients": "root", "update_every": 6},
    "levels, sum, dynamic": {
        "clusters": 3, "block": (2, 1), "levels": 2, "gradients": "sum", "update_every": 6
    },
}  # fmt: skip


def fit(model, data, *callbacks, epochs=1, **arguments):
    return model.fit(
        *data, epochs=epochs, batch_size=32, verbose=0, callbacks=list(callbacks), **arguments
    )


def sgd(weights=None, **arguments):
    model = small_model(optimizer=keras.optimizers.SGD(0.05), **arguments)
    if weights is not None:
        model.set_weights(weights)
    return model


def over_root(steps):
    reach = np.sqrt(np.mean(steps**2))
    return np.clip(steps.sum() / np.sqrt(len(steps)), -reach, reach)


@pytest.mark.parametrize(
    ("gradients", "move", "least"),
    [("mean", np.mean, 1e-4), ("sum", np.sum, 1e-3), ("root", over_root, 1e-3)],
)
def test_a_centroid_moves_by_the_steps_of_its_weights(gradients, move, least, data):
    clustered = tfc.cluster(sgd(), clusters=4).get_weights()
    batch = data[0][:32], data[1][:32]
    free = sgd(clustered)
    fit(free, batch)
    model = sgd(clustered)
    fit(model, batch, tfc.ClusterOnSchedule(clusters=4, gradients=gradients))
    for old, moved, found in zip(
        clustered[::2], free.get_weights()[::2], model.get_weights()[::2], strict=True
    ):
        expected = old.copy()
        for value in np.unique(old):
            expected[old == value] += move((moved - old)[old == value])
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert np.abs(found - old).max() > least


def form_holds(w, form):
    if form.get("per") == "channel":
        return all(len(np.unique(column)) <= 3 for column in w.T)
    if form.get("levels") == 2:
        # Sums of 3 + 3 blocks are at most 9 blocks, which span 5 dimensions less their mean.
        blocks = np.unique(to_blocks(w, (2, 1)), axis=0)
        return len(blocks) <= 9
    return len(np.unique(w)) <= 4


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("compiled", [{}, {"jit_compile": True, "steps_per_execution": 4}], ids=str)
def test_the_form_holds_after_every_step_and_trains(data, form, compiled):
    model = sgd(**compiled)
    held, values = [], []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            w = np.asarray(model.get_layer("hidden").kernel)
            held.append(form_holds(w, form))
            values.append(w.copy())

    history = fit(model, data, tfc.ClusterOnSchedule(**form), Watch(), epochs=2)
    assert all(held)
    assert not np.array_equal(values[0], values[-1])
    assert np.isfinite(history.history["loss"]).all()
    assert history.history["empty_clusters"][0] >= 0


def test_levels_do_not_drift_without_gradient_and_are_found_again_in_a_next_fit(data):
    model = small_model(optimizer=keras.optimizers.SGD(0.0))
    callback = tfc.ClusterOnSchedule(**FORMS["levels"])
    fit(model, data, callback)
    before = np.asarray(model.get_layer("hidden").kernel)
    fit(model, data, callback, epochs=2)
    np.testing.assert_allclose(model.get_layer("hidden").kernel, before, atol=1e-7)


def test_convolutions_without_bias_are_clustered_per_channel():
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.Conv2D(4, 3, use_bias=False, name="conv"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3, name="head"),
        ]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 6, 6, 2)).astype("float32"), rng.integers(0, 3, 64)
    rules = [{"layers": "head", "skip": "the last layer"}]
    fit(model, (x, y), tfc.ClusterOnSchedule(clusters=4, per="channel", rules=rules))
    columns = np.asarray(model.get_layer("conv").kernel).reshape(18, 4).T
    assert [len(np.unique(column)) for column in columns] == [4] * 4
    assert len(np.unique(columns)) == 16


def test_codes_of_the_grid_stay_through_training_and_into_the_file(data):
    model = small_model()
    fit(model, data, tfc.PruneOnSchedule({"polynomial": {"end": 0.5, "end_step": 8}}))
    model = tfc.quantize_aware(model, samples=data[0][:64])
    arguments = {"loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}
    model.compile(keras.optimizers.Adam(0.01), **arguments)
    history = fit(model, data, tfc.ClusterOnSchedule(clusters=6, grid="int8"), epochs=2)
    assert history.history["distinct_values"] == [5, 5]  # and zero
    kernels = [w for w in model.get_weights() if w.ndim == 2]
    found = tfc.audit(tfc.convert(model, scheme="int8"))
    distinct = [w.distinct for w in found.weights]
    assert max(distinct) == 5
    assert found.sparsity == pytest.approx(0.5)
    # Trained on, the codes stay: Preserve sees them.
    fit(model, data, tfc.Preserve())
    assert [w.distinct for w in tfc.audit(tfc.convert(model)).weights] == distinct
    assert not np.array_equal(kernels[0], [w for w in model.get_weights() if w.ndim == 2][0])


def test_a_killed_fit_finds_codes_and_sums_in_the_weights(data, tmp_path):
    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    def run(form, *extra, backup):
        keras.utils.set_random_seed(1)
        model = sgd()
        restore = keras.callbacks.BackupAndRestore(tmp_path / backup)
        ours = [tfc.ClusterOnSchedule(**form), *extra, restore]
        fit(model, data, *ours, epochs=2, shuffle=False)
        return model

    for number, form in enumerate(({"clusters": 5, "grid": "int8"}, FORMS["sum"])):
        whole = run(form, backup=f"a{number}")
        with pytest.raises(KeyboardInterrupt):
            run(form, Kill(), backup=f"b{number}")
        for one, other in zip(
            whole.get_weights(), run(form, backup=f"b{number}").get_weights(), strict=True
        ):
            np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("block", [(1, 1), (2, 1)])
def test_pruning_on_empties_clusters_which_stay_and_are_counted(data, block):
    model = small_model()
    schedule = {"polynomial": {"end": 0.9, "begin_step": 8, "end_step": 12}}
    history = fit(
        model,
        data,
        tfc.ClusterOnSchedule(clusters=8, block=block),
        tfc.PruneOnSchedule(schedule, update_every=1),
    )
    assert zeros(model.get_layer("hidden")) == pytest.approx(0.9, abs=0.01)
    found = history.history["empty_clusters"][0]
    kernels = [w for w in model.get_weights() if w.ndim > 1]
    if block == (1, 1):
        assert found == sum(8 - len(np.unique(w[w != 0])) for w in kernels)
    assert 0 < found < 8 * len(kernels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gradients": "total"}, "Known: mean, root, sum"),
        ({"grid": "int8", "gradients": "sum"}, "trains scales alone"),
        ({"grid": "int8", "update_every": 5}, "trains scales alone"),
        ({"freeze_step": 5}, "is for dynamic clusters"),
        ({"freeze_step": 5, "begin_step": 5, "update_every": 2}, "above begin_step"),
        ({"clusters": 1}, "clusters=1"),
        ({"levels": 9}, "levels=9"),
    ],
)
def test_bad_arguments_are_one_clear_line(arguments, message):
    with pytest.raises(tfc.InputError, match=message) as caught:
        tfc.ClusterOnSchedule(**arguments)
    assert "\n" not in str(caught.value)


def test_fewer_values_than_clusters_are_told_and_are_no_empty_clusters(data):
    model = small_model()
    hidden = model.get_layer("hidden")
    hidden.kernel.assign(np.where(hidden.kernel > 0, 0.5, -0.25))
    rules = [{"layers": "head", "skip": "the last layer"}]
    message = "ClusterOnSchedule: clusters for hidden/kernel are more than its 2 distinct values"
    with pytest.warns(UserWarning, match=message):
        history = fit(model, data, tfc.ClusterOnSchedule(clusters=8, rules=rules))
    assert history.history["empty_clusters"] == [0]
    assert len(np.unique(hidden.kernel)) == 2


def test_few_values_of_a_fresh_kernel_are_no_clusters_of_an_earlier_fit(data):
    model = small_model()
    hidden, head = model.get_layer("hidden"), model.get_layer("head")
    shared = tfc.clustering.KMeans(16).fit(np.asarray(hidden.kernel).reshape(-1, 1)).decode()
    hidden.kernel.assign(shared.reshape(hidden.kernel.shape))
    rules = [{"layers": "head", "clusters": "auto", "block": (1, 1)}]
    fit(model, data, tfc.ClusterOnSchedule(clusters=8, block=(1, 2), rules=rules))
    assert len(np.unique(to_blocks(np.asarray(hidden.kernel), (1, 2)), axis=0)) == 8
    assert len(np.unique(head.kernel)) < 16 < head.kernel.shape[0] * head.kernel.shape[1] <= 64
    sparse = np.asarray(hidden.kernel) * (np.random.default_rng(0).random((8, 16)) < 0.3)
    hidden.kernel.assign(sparse + np.where(sparse != 0, np.arange(128.0).reshape(8, 16) / 99, 0))
    fit(model, data, tfc.ClusterOnSchedule(clusters=2, per="channel"))
    columns = np.asarray(hidden.kernel).T
    assert max(len(np.unique(column[column != 0])) for column in columns) == 2


def test_empty_clusters_of_pruned_blocks_are_not_below_none(data):
    model = small_model()
    for layer in model.layers:
        kept = np.random.default_rng(0).random(layer.kernel.shape) < 0.3
        layer.kernel.assign(np.where(kept, layer.kernel, 0.0))
    rules = [{"layers": "head", "skip": "the last layer"}]
    callback = tfc.ClusterOnSchedule(clusters=8, block=(2, 2), update_every=3, rules=rules)
    assert fit(model, data, callback).history["empty_clusters"] == [0]


def test_the_sum_of_normalised_steps_is_warned_of(data):
    model = small_model()
    callback = tfc.ClusterOnSchedule(clusters=8, gradients="sum")
    model.compile("adam", "sparse_categorical_crossentropy")
    with pytest.warns(UserWarning, match="'sum' moves .* which Adam has normalised.*'root'"):
        model.fit(*data, verbose=0, callbacks=[callback])


def test_a_step_by_hand_needs_a_model():
    with pytest.raises(tfc.InputError, match="needs a model before apply"):
        tfc.ClusterOnSchedule().apply(0)


def test_what_only_the_model_tells_stops_before_training(data):
    broken = small_model()
    broken.get_layer("head").kernel.assign(np.full(broken.get_layer("head").kernel.shape, np.nan))
    with pytest.raises(tfc.InputError, match="Weights of head/kernel must be finite"):
        fit(broken, data, tfc.ClusterOnSchedule(begin_step=3))
    with pytest.raises(tfc.InputError, match="per of ClusterOnSchedule must be 'kernel'"):
        fit(small_model(), data, tfc.ClusterOnSchedule(per="model"))
    with pytest.raises(tfc.InputError, match="block for head/kernel.*16 x 3"):
        fit(small_model(), data, tfc.ClusterOnSchedule(block=(1, 4)))
    model = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(3), keras.layers.BatchNormalization()]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(tfc.InputError, match="BatchNorm is folded"):
        fit(model, data, tfc.ClusterOnSchedule(clusters=4, grid="int8"))
