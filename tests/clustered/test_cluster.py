"""`tfc.cluster`: a new model whose kernels share few values, also in the int8 file."""

import re
import warnings

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tfcompress.clustered import Plan, cluster_codes, cluster_kernel, cluster_together
from tfcompress.weights import kernels, to_blocks

L = keras.layers
PATHS = ("conv/kernel", "depthwise/kernel", "pointwise/kernel", "head/kernel")


@pytest.fixture(scope="module")
def model():
    """Convolutions with and without bias, a BatchNorm that scales channels unlike, ragged sizes."""
    keras.utils.set_random_seed(0)
    made = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            L.Conv2D(6, 3, use_bias=False, name="conv"),
            L.BatchNormalization(name="norm"),
            L.ReLU(),
            L.DepthwiseConv2D(3, name="depthwise"),
            L.Conv2D(10, 1, name="pointwise"),
            L.Flatten(),
            L.Dense(5, name="head"),
        ]
    )
    rng = np.random.default_rng(1)
    norm = made.get_layer("norm")
    norm.gamma.assign(rng.uniform(0.2, 3.0, 6))
    norm.moving_variance.assign(rng.uniform(0.2, 3.0, 6))
    return made


def images(count=40):
    return np.random.default_rng(0).normal(size=(count, 8, 8, 3)).astype("float32")


def values(model):
    return {kernel.path: kernel.value() for kernel in kernels(model)}


def error(model, other):
    return sum(((w - values(other)[path]) ** 2).sum() for path, w in values(model).items())


def test_each_kernel_gets_the_optimum_of_its_own_and_the_input_stays(model):
    before = model.get_weights()
    small = tfc.cluster(model, clusters=4)
    for path, w in values(small).items():
        book = tfc.clustering.KMeans(clusters=4).fit(values(model)[path].reshape(-1, 1))
        np.testing.assert_allclose(w.ravel(), book.decode()[:, 0], rtol=1e-6)
    for old, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, now)
    np.testing.assert_array_equal(small.get_layer("norm").gamma, model.get_layer("norm").gamma)


def test_one_codebook_for_the_model_for_a_group_and_for_each_channel(model):
    whole = np.concatenate([w.ravel() for w in values(tfc.cluster(model, per="model")).values()])
    assert len(np.unique(whole)) == 16
    rules = [{"layers": "conv|head", "group": "ends"}]
    grouped = values(tfc.cluster(model, clusters=8, rules=rules))
    ends = np.concatenate([grouped["conv/kernel"].ravel(), grouped["head/kernel"].ravel()])
    assert len(np.unique(ends)) == 8
    assert len(np.unique(np.append(ends, grouped["pointwise/kernel"]))) == 16
    by_channel = values(tfc.cluster(model, clusters=2, per="channel"))
    conv = by_channel["conv/kernel"].reshape(27, 6)  # a convolution without bias
    assert [len(np.unique(column)) for column in conv.T] == [2] * 6
    depthwise = by_channel["depthwise/kernel"].reshape(9, 6)
    assert [len(np.unique(column)) for column in depthwise.T] == [2] * 6


def test_levels_are_sums_that_no_other_entries_would_fit_better():
    """Against numpy's least squares over the whole design matrix of the two codebooks."""
    w = np.random.default_rng(2).normal(size=(12, 8)).astype(np.float32)
    found = cluster_kernel(w, Plan("test", {"kmeans": {"clusters": 3}}, block=(1, 4), levels=2))
    design = np.zeros((w.size, found.places.max() + 1))
    for level in found.places:
        np.add.at(design, (np.arange(w.size), level.ravel()), 1)
    best = design @ np.linalg.lstsq(design, w.ravel(), rcond=None)[0]
    np.testing.assert_allclose(found.values.ravel(), best, atol=1e-6)
    assert len(np.unique(to_blocks(found.values, (1, 4)), axis=0)) <= 9
    one = cluster_kernel(w, Plan("test", {"kmeans": {"clusters": 3}}, block=(1, 4)))
    assert found.error < one.error


def test_what_fills_up_ragged_edges_is_no_weight():
    """One block of 2 x 2 over a 3 x 1 kernel: each value is the mean of true weights alone."""
    w = np.array([[1.0], [2.0], [5.0]], np.float32)
    plan = Plan("test", {"linear": {"clusters": 2}}, block=(3, 1))
    np.testing.assert_array_equal(cluster_kernel(w, plan).values, w)
    ragged = np.array([[1.0, 1.0, 9.0]], np.float32)  # blocks (1, 1) and (9, filling)
    same = Plan("test", {"linear": {"clusters": 2}}, block=(1, 2))
    np.testing.assert_array_equal(cluster_kernel(ragged, same).values, ragged)


def test_zeros_stay_and_importance_draws_the_centroids():
    w = np.array([[0.0, 1.0, 2.0, 10.0, 0.0]], np.float32)
    plan = Plan("test", {"kmeans": {"clusters": 2}})
    assert cluster_kernel(w, plan).values.tolist() == [[0.0, 1.5, 1.5, 10.0, 0.0]]
    counted = np.array([[1.0, 3.0, 1.0, 1.0, 1.0]])
    found = cluster_kernel(w, plan, importance=counted)
    assert found.values.tolist() == [[0.0, 1.25, 1.25, 10.0, 0.0]]
    assert found.error == pytest.approx(3 * 0.25**2 + 0.75**2)
    mixed = cluster_kernel(w, Plan("test", {"kmeans": {"clusters": 2}}, keep_zeros=False))
    assert mixed.values.tolist() == [[0.75, 0.75, 0.75, 10.0, 0.75]]


def test_index_bits_are_the_entropy_of_indices_and_zeros():
    w = np.array([[0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 5.0, 5.0]], np.float32)
    (found,) = cluster_together([w], Plan("test", {"kmeans": {"clusters": 2}}))
    assert found.index_bits == pytest.approx(8 + 4)  # a bit each for zero or not, then 2 of 4
    assert found.codebook_bytes == 8


def test_a_constant_kernel_has_one_cluster(model):
    flat = keras.models.clone_model(model)
    flat.get_layer("head").kernel.assign(np.full(flat.get_layer("head").kernel.shape, 0.25))
    for grid in (None, "int8"):
        with pytest.warns(UserWarning, match="^head/kernel is constant: it has one cluster$"):
            w = tfc.cluster(flat, clusters=4, grid=grid).get_layer("head").kernel
        np.testing.assert_allclose(w, 0.25, rtol=1e-6)


def test_one_value_for_a_whole_kernel_is_told(model):
    dense = keras.models.clone_model(model)
    w = np.random.default_rng(0).normal(0, 1e-3, dense.get_layer("head").kernel.shape)
    dense.get_layer("head").kernel.assign(w)
    method = {"dbscan": {"radius": 1.0}}
    with pytest.warns(
        UserWarning, match="^head/kernel is one value now: DBSCAN has found a single"
    ):
        tfc.cluster(dense, method, rules=[{"layers": "(?!head).*", "skip": "x"}])


def test_rules_speak_of_the_models_paths_on_the_grid_too():
    inner = keras.Sequential([keras.Input((30,)), L.Dense(16, name="d1"), L.BatchNormalization()])
    inner.name = "inner"
    inputs = keras.Input((30,))
    nested = keras.Model(inputs, L.Dense(8, name="head")(inner(inputs)))
    rules = [{"layers": "inner/d1", "clusters": 4}, {"layers": "head", "skip": "the last layer"}]
    small = tfc.cluster(nested, clusters=16, grid="int8", rules=rules)
    first, last = (w for w in small.get_weights() if w.ndim == 2)
    codes = first / np.abs(first).max(axis=0)
    assert len(np.unique(np.rint(127 * codes))) == 4 and len(np.unique(last)) == last.size


def test_preserve_keeps_a_hundred_codes():
    made = keras.Sequential([keras.Input((64,)), L.Dense(64)])
    small = tfc.cluster(made, clusters=100, grid="int8")
    x = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)

    def codes():
        ((_, stored),) = tfc.tflite.stored_kernels(tfc.convert(small, "int8", x))
        return stored

    before = codes()
    small.compile("adam", "mse")
    small.fit(x, x, verbose=0, callbacks=[tfc.Preserve()])
    assert len(np.unique(before)) == 100
    np.testing.assert_array_equal(codes(), before)


@pytest.mark.parametrize(
    ("values", "arguments", "text"),
    [
        ([1, 2, 4], {}, "more than its 3 distinct values, each .* of its own. Received: clusters="),
        ([1, 2], {"block": (4, 1)}, "more than its 16 distinct blocks"),
        ([0, 3], {}, "head/kernel is constant but for its zeros: it has one cluster"),
        ([0, 3], {"keep_zeros": False}, "more than its 2 distinct values"),
        ([0], {}, "head/kernel is all zeros, which stay: it has no clusters"),
        ([1, 2, 4], {"clusters": 3}, ""),
        ([1, 2], {"clusters": "auto"}, ""),
        ([5], {"clusters": "auto"}, "head/kernel is constant: it has one cluster"),
    ],
)
def test_kernels_with_fewer_values_than_clusters_keep_them_and_it_is_said(values, arguments, text):
    made = keras.Sequential([keras.Input((64,)), L.Dense(10, name="head")])
    w = np.resize(np.float32(values), 640)[np.random.default_rng(0).permutation(640)]
    made.get_layer("head").kernel.assign(w.reshape(64, 10))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        small = tfc.cluster(made, **{"clusters": 20} | arguments)
    np.testing.assert_array_equal(small.get_layer("head").kernel, w.reshape(64, 10))
    told = [str(one.message) for one in caught if "head/kernel" in str(one.message)]
    assert len(told) == bool(text) and all(re.search(text, line) for line in told)
    assert not any("\n" in line for line in told)


def test_budgets_are_kept_and_beat_equal_numbers_of_clusters(model):
    even = [cluster_kernel(w, Plan("test")) for w in values(model).values()]
    budget = sum(found.codebook_bytes + found.index_bits / 8 for found in even)
    chosen = tfc.cluster(model, max_bytes=budget)
    again = [cluster_kernel(w, Plan("test", {"kmeans": {"clusters": 256}}))
             for w in values(chosen).values()]  # fmt: skip
    assert sum(found.codebook_bytes + found.index_bits / 8 for found in again) <= budget
    assert error(chosen, model) <= sum(found.error for found in even)
    total = sum((w**2).sum() for w in values(model).values())
    assert error(tfc.cluster(model, max_error=0.01), model) <= 0.01 * total


@pytest.mark.parametrize("made", ["plain", "quantize_aware"])
def test_int8_files_have_no_more_codes_than_clusters(model, made):
    given = model if made == "plain" else tfc.quantize_aware(model, samples=images())
    small = tfc.cluster(given, clusters=8, grid="int8")
    found = tfc.audit(tfc.convert(small, scheme="int8", samples=images()))
    assert found.full_integer
    assert [w.distinct <= 8 for w in found.weights] == [True] * 4
    # Without the grid, scales per channel tear the clusters apart.
    floats = tfc.audit(tfc.convert(tfc.cluster(given, clusters=8), "int8", samples=images()))
    assert max(w.distinct for w in floats.weights) > 16


def test_files_of_attention_and_recurrent_layers_have_no_more_codes_than_clusters():
    tokens = keras.Input((3,), dtype="int32")
    x = L.Embedding(20, 8)(tokens)
    x = x + L.MultiHeadAttention(2, 4)(x, x)
    x = L.EinsumDense("abc,bcd->abd", (3, 5))(x)  # a product for each place
    x = L.Concatenate()([L.LSTM(4, unroll=True)(x), L.GRU(3, unroll=True, reset_after=False)(x)])
    model = keras.Model(tokens, L.Dense(4)(x))
    samples = np.random.default_rng(0).integers(0, 20, (40, 3)).astype(np.int32)
    small = tfc.cluster(model, clusters=6, grid="int8")
    found = tfc.audit(tfc.convert(small, "int8", samples))
    assert found.full_integer
    assert len(found.weights) >= 10 and max(w.distinct for w in found.weights) <= 6


def test_zero_is_one_of_the_codes_of_a_pruned_kernel():
    w = np.random.default_rng(0).normal(size=(40, 7)).astype(np.float32)
    w[np.abs(w) < 0.7] = 0
    w[:, 3] = 0
    codes, near = cluster_codes(w, (1,), clusters=6)
    assert 0 in codes and len(np.unique(codes)) <= 6
    np.testing.assert_array_equal(near == 0, w == 0)
    assert (np.abs(codes).max(axis=0) == [127, 127, 127, 0, 127, 127, 127]).all()
    # What a converter does: scale = max / 127, then round.
    scale = np.abs(near).max(axis=0) / np.float32(127)
    np.testing.assert_array_equal(np.rint(near[:, [0, 1]] / scale[[0, 1]]), codes[:, [0, 1]])


def test_scales_and_codes_found_together_beat_codes_for_the_largest_weight():
    from tfcompress.quantization.grid import grid
    from tfcompress.quantization.rounding.kmeans import KMeans

    w = np.random.default_rng(0).standard_t(5, size=(200, 6)).astype(np.float32)
    on = grid(-np.abs(w).max(axis=0), np.abs(w).max(axis=0))
    fixed = on.dequantize(KMeans(clusters=16).round(w, on))
    _, near = cluster_codes(w, (1,), clusters=16)
    assert ((near - w) ** 2).sum() < ((fixed - w) ** 2).sum()


def test_fisher_weights_save_more_loss_than_none(model):
    x = images(64)
    y = np.asarray(model(x)).argmax(axis=1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    importance = tfc.fisher(model, (x, y), loss, batches=16, batch_size=4)
    assert {path: f.shape for path, f in importance.items()} == {
        path: w.shape for path, w in values(model).items()
    }
    assert all(f.min() >= 0 and f.max() > 0 for f in importance.values())
    counted = tfc.cluster(model, clusters=3, importance=importance)
    weighted, plain = (
        sum((importance[p] * (w - values(m)[p]) ** 2).sum() for p, w in values(model).items())
        for m in (counted, tfc.cluster(model, clusters=3))
    )
    assert weighted < plain


def test_weights_without_importance_still_get_values_of_their_own(model):
    head = model.get_layer("head").kernel
    w = np.asarray(head)
    importance = {path: np.zeros(value.shape) for path, value in values(model).items()}
    zero = tfc.cluster(model, clusters=4, importance=importance)
    plain = tfc.cluster(model, clusters=4)
    for path, value in values(plain).items():
        np.testing.assert_allclose(values(zero)[path], value, rtol=1e-5)
    middle = np.median(w)
    importance["head/kernel"] = (w < middle).astype(np.float64)
    half = np.asarray(
        tfc.cluster(model, "linear", 4, importance=importance).get_layer("head").kernel
    )
    assert np.unique(half[w > 0.9 * w.max()]).min() > middle


def test_a_rule_keeps_its_number_within_a_budget_which_asks_for_none(model):
    rules = [{"layers": "head", "clusters": 2}]
    small = tfc.cluster(model, max_bytes=900, rules=rules)
    counts = {path: len(np.unique(w)) for path, w in values(small).items()}
    assert counts["head/kernel"] == 2 and max(counts.values()) > 2
    tiny = keras.Sequential([keras.Input((2,)), L.Dense(5)])  # has no 16 weights
    assert len(np.unique(tfc.cluster(tiny, max_bytes=100).layers[0].kernel)) <= 10


def test_a_rule_that_names_a_method_keeps_the_number_of_clusters(model):
    rules = [
        {"layers": "head", "method": "gmm"},
        {"layers": "pointwise", "method": {"linear": {"clusters": 7}}},
    ]
    found = values(tfc.cluster(model, clusters=4, rules=rules))
    counts = {path: len(np.unique(w)) for path, w in found.items()}
    assert counts == {
        "conv/kernel": 4, "depthwise/kernel": 4, "pointwise/kernel": 7, "head/kernel": 4
    }  # fmt: skip


def test_channels_that_are_constant_each_are_not_called_a_constant_kernel():
    made = keras.Sequential([keras.Input((4,)), L.Dense(3, name="head")])
    made.get_layer("head").kernel.assign(np.tile([[1.0, 2.0, 3.0]], (4, 1)))
    with pytest.warns(UserWarning, match="^head/kernel is constant in each of its channels"):
        tfc.cluster(made, clusters=2, per="channel")


def test_a_centroid_that_lost_its_blocks_starts_where_the_error_is_largest():
    blocks = np.float32([[1, 1], [1, 2], [5, 5], [9, 9]])
    plan = Plan("test", {"kmeans": {"clusters": 3}}, block=(2, 1))
    start = [np.float32([[1, 1], [5, 5], [-99, -99]])]
    found = cluster_kernel(blocks.reshape(-1, 1), plan, start=start)
    assert np.unique(to_blocks(found.values, (2, 1)), axis=0).tolist() == [[1, 1.5], [5, 5], [9, 9]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"block": (100, 1)}, "block for conv/kernel.*27 x 6 weights.*block=\\(100, 1\\)"),
        ({"clusters": 1}, "clusters=1"),
        ({"clusters": 10000}, "clusters for conv/kernel must not be more than its 162 weights"),
        ({"method": "k-means"}, "Did you mean 'kmeans'"),
        ({"per": "layer"}, "Known: channel, kernel, model"),
        ({"per": "channel", "block": (1, 4)}, "block for conv/kernel .* of a channel"),
        ({"levels": 0}, "levels=0"),
        ({"max_bytes": 10}, "must be at least [0-9,]+, what two clusters for each kernel take"),
        ({"max_bytes": 1e4, "clusters": 8}, "one of max_bytes and max_error, without clusters"),
        ({"max_error": 2}, r"in \(0, 1\). Received: max_error=2"),
        ({"grid": "int4"}, "Unknown grid of cluster 'int4'"),
        ({"grid": "int8", "method": "linear"}, "needs the method kmeans"),
        ({"grid": "int8", "levels": 2}, "goes with block"),
        ({"importance": {"conv/kernel": np.ones(3)}}, "importance of conv/kernel must have shape"),
        ({"importance": np.ones(3)}, "importance of cluster must be a mapping"),
        ({"importance": {"haed/kernel": 1}}, "Unknown path of a kernel.* 'head/kernel'"),
        ({"importance": dict.fromkeys(PATHS, "x")}, "importance of conv/kernel .* of numbers"),
        ({"rules": [{"layers": "no", "skip": "x"}]}, "matches no kernel"),
        ({"rules": [{"layers": ".*", "skip": "x"}]}, "at least one kernel that no rule skips"),
    ],
)
def test_bad_arguments_are_one_clear_line(model, arguments, message):
    with pytest.raises(tfc.InputError, match=message) as caught:
        tfc.cluster(model, **arguments)
    assert "\n" not in str(caught.value)


def test_levels_that_need_too_much_memory_are_refused_with_the_way_out():
    made = keras.Sequential([keras.Input((128,)), L.Dense(128, name="head")])
    words = {"clusters": 3000, "block": (2, 2)}
    message = (
        r"levels for head/kernel of 3000 clusters each need 1\.1 GB: must be 1, or have fewer "
        "clusters. Received: levels=2"
    )
    with pytest.raises(tfc.InputError, match=message):
        tfc.cluster(made, levels=2, **words)


def test_weights_that_are_not_finite_are_named(model):
    broken = keras.models.clone_model(model)
    broken.get_layer("pointwise").kernel.assign(np.full((1, 1, 6, 10), np.nan))
    with pytest.raises(tfc.InputError, match="Weights of pointwise/kernel must be finite"):
        tfc.cluster(broken)
