import itertools
import subprocess
import sys

import kmeans1d
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import cluster, datasets

from tfcompress.clustering import KMeans, scalar
from tfcompress.errors import InputError

VALUES = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=10)


def column(values):
    return np.asarray(values, np.float32).reshape(-1, 1)


def lowest_sse(values, clusters, weight=None):
    """Tries every way to cut the sorted values into intervals."""
    order = np.argsort(values)
    x = np.asarray(values, np.float64)[order]
    w = np.ones(len(x)) if weight is None else np.asarray(weight, np.float64)[order]
    best = np.inf
    for cuts in itertools.combinations(range(1, len(x)), min(clusters, len(x)) - 1):
        total = 0.0
        for begin, end in itertools.pairwise((0, *cuts, len(x))):
            mean = np.average(x[begin:end], weights=w[begin:end])
            total += w[begin:end] @ (x[begin:end] - mean) ** 2
        best = min(best, total)
    return best


@given(values=VALUES, clusters=st.integers(2, 5))
def test_scalars_reach_the_optimum(values, clusters):
    blocks = column(values)
    codebook = KMeans(clusters).fit(blocks)
    assert codebook.sse(blocks) == pytest.approx(lowest_sse(values, clusters), rel=1e-6, abs=1e-6)
    assert (np.diff(codebook.centroids[:, 0]) > 0).all()


@given(values=VALUES, clusters=st.integers(2, 4), data=st.data())
def test_weights_count_like_repetitions(values, clusters, data):
    repeats = data.draw(
        st.lists(st.integers(1, 4), min_size=len(values), max_size=len(values)), label="repeats"
    )
    codebook = KMeans(clusters).fit(column(values), np.array(repeats))
    repeated = np.repeat(values, repeats)
    expected = KMeans(clusters).fit(column(repeated)).sse(column(repeated))
    assert codebook.sse(column(values), repeats) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    optimum = lowest_sse(values, clusters, repeats)
    assert codebook.sse(column(values), repeats) == pytest.approx(optimum, rel=1e-6, abs=1e-6)


def test_blocks_without_weight_get_the_nearest_centroid():
    codebook = KMeans(2).fit(column([0, 1, 9, 10, 6]), [1, 1, 1, 1, 0])
    np.testing.assert_array_equal(codebook.centroids[:, 0], [0.5, 9.5])
    np.testing.assert_array_equal(codebook.indices, [0, 0, 1, 1, 1])


@given(values=st.lists(st.sampled_from([-2.5, -0.0, 0.0, 1e-30, 3.0]), min_size=1, max_size=12))
def test_few_distinct_values_stay_as_they_are(values):
    codebook = KMeans(8).fit(column(values))
    np.testing.assert_array_equal(codebook.decode(), column(values))
    assert len(codebook.centroids) == len(set(values))


SHAPES = {
    "normal": lambda r, n: r.normal(0, 0.05, n),
    "laplace": lambda r, n: r.laplace(0, 0.02, n),
    "shifted": lambda r, n: r.normal(1, 0.3, n),
    "pruned": lambda r, n: r.normal(0, 1, n) * (r.random(n) < 0.2),
    "outlier": lambda r, n: np.append(r.normal(0, 0.05, n - 1), -1e6),
    "heavy": lambda r, n: r.standard_cauchy(n),
}


@pytest.mark.parametrize(
    ("shape", "clusters"), [(shape, 16) for shape in SHAPES] + [("normal", 64)]
)
def test_more_values_than_the_program_takes_reach_the_optimum(shape, clusters):
    values = SHAPES[shape](np.random.default_rng(0), 70_000).astype(np.float32)
    labels, _ = kmeans1d.cluster(values.astype(np.float64), clusters)
    masses, sums = (np.bincount(labels, w) for w in (None, values.astype(np.float64)))
    optimum = np.sum((values - (sums / masses)[labels]) ** 2)
    assert KMeans(clusters).fit(column(values)).sse(column(values)) <= optimum * (1 + 1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("path", ["merged", "binned"])
def test_large_kernels_stay_within_a_thousandth_of_the_optimum(shape, path, monkeypatch):
    blocks = column(SHAPES[shape](np.random.default_rng(0), 30_000))
    optimum = KMeans(16).fit(blocks).sse(blocks)
    monkeypatch.setattr(scalar, "EXACT_VALUES", 5_000)
    if path == "binned":
        monkeypatch.setattr(scalar, "SORTED_VALUES", 5_000)
    codebook = KMeans(16).fit(blocks)
    assert optimum * (1 - 1e-6) <= codebook.sse(blocks) <= 1.001 * optimum
    nearest = abs(blocks - codebook.centroids.T).min(axis=1)
    error = abs(blocks - codebook.decode())[:, 0]
    np.testing.assert_allclose(error, nearest, atol=1e-3 * np.ptp(codebook.centroids[2:-2]))


def test_a_large_kernel_with_few_values_is_kept_exactly(monkeypatch):
    monkeypatch.setattr(scalar, "SORTED_VALUES", 5_000)
    values = np.float32(0.1) + np.arange(16, dtype=np.float32) * np.spacing(np.float32(0.1))
    blocks = column(np.random.default_rng(0).choice(values, 20_000))
    np.testing.assert_array_equal(KMeans(16).fit(blocks).decode(), blocks)


def test_thousands_of_clusters():
    blocks = column(np.random.default_rng(0).normal(size=100_000))
    codebook = KMeans(4096).fit(blocks)
    # Panter and Dite: SSE = n * (integral of density^(1/3))^3 / (12 k^2).
    expected = len(blocks) * 6 * np.sqrt(3) * np.pi / (12 * 4096**2)
    assert len(codebook.centroids) == 4096
    assert codebook.sse(blocks) < 1.1 * expected


def test_scalars_are_not_worse_than_scikit_learns():
    blocks = datasets.load_digits().data[:40].reshape(-1, 1).astype(np.float32)
    blocks += np.random.default_rng(0).normal(0, 0.3, blocks.shape).astype(np.float32)
    theirs = cluster.KMeans(8, n_init=5, random_state=0).fit(blocks).inertia_
    assert KMeans(8).fit(blocks).sse(blocks) <= theirs * (1 + 1e-6)


def test_the_order_of_blocks_does_not_matter():
    blocks = column(np.random.default_rng(0).normal(size=5000))
    order = np.random.default_rng(1).permutation(5000)
    one, other = KMeans(16).fit(blocks), KMeans(16).fit(blocks[order])
    np.testing.assert_array_equal(one.indices[order], other.indices)
    np.testing.assert_allclose(one.centroids, other.centroids, rtol=1e-6)


def test_blocks_are_clustered_like_scikit_learn():
    centers = np.random.default_rng(0).normal(size=(8, 4))
    blocks, _ = datasets.make_blobs(2000, centers=centers, cluster_std=0.05, random_state=0)
    blocks = blocks.astype(np.float32)
    codebook = KMeans(8, seed=1).fit(blocks)
    theirs = cluster.KMeans(8, n_init=5, random_state=0).fit(blocks).inertia_
    assert codebook.sse(blocks) <= 1.5 * theirs
    means = [blocks[codebook.indices == i].mean(axis=0) for i in range(len(codebook.centroids))]
    np.testing.assert_allclose(codebook.centroids, means, rtol=1e-4, atol=1e-5)


def test_fewer_distinct_blocks_than_clusters_are_exact():
    blocks = np.random.default_rng(0).integers(0, 2, (300, 3)).astype(np.float32)
    codebook = KMeans(16).fit(blocks)
    assert len(codebook.centroids) == 8
    np.testing.assert_array_equal(codebook.decode(), blocks)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_sample_serves_many_blocks(monkeypatch, weighted):
    monkeypatch.setattr("tfcompress.clustering.kmeans._SAMPLE", 10_000)
    generator = np.random.default_rng(0)
    blocks = generator.normal(size=(40_000, 2)).astype(np.float32)
    weight = generator.exponential(size=40_000) if weighted else None
    one, again = KMeans(16).fit(blocks, weight), KMeans(16).fit(blocks, weight)
    np.testing.assert_array_equal(one.indices, again.indices)
    # Nothing is left to gain from there with all blocks in sight, and not much from elsewhere.
    for init, share in ((one.centroids, 1.02), ("k-means++", 1.1)):
        theirs = cluster.KMeans(16, init=init, n_init=1, random_state=0).fit(blocks, None, weight)
        assert one.sse(blocks, weight) < share * theirs.inertia_


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clusters": 1}, r"clusters of KMeans must be a whole number in \[2, 65536\]"),
        ({"clusters": 65537}, "Received: clusters=65537"),
        ({"clusters": 2.5}, "clusters of KMeans"),
        ({"seed": -1}, "seed of KMeans"),
        ({"max_iterations": 0}, "max_iterations of KMeans"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        KMeans(**arguments)


@pytest.mark.parametrize(
    ("blocks", "weight", "message"),
    [
        (np.empty((0, 1)), None, r"must have shape \(n, d\), not empty"),
        (np.ones(3), None, r"must have shape \(n, d\)"),
        (column([1, np.nan]), None, "must be finite"),
        (column([1, np.inf]), None, "must be finite"),
        (column([1, 2]), [1], r"sample_weight of KMeans must have shape \(2,\)"),
        (column([1, 2]), [1, -1], "not negative"),
        (column([1, 2]), [0, 0], "not all zero"),
    ],
)
def test_wrong_blocks(blocks, weight, message):
    with pytest.raises(InputError, match=message):
        KMeans(2).fit(blocks, weight)


@settings(max_examples=5)
@given(seed=st.integers(0, 99))
def test_a_seed_gives_one_result_for_blocks(seed):
    blocks = np.random.default_rng(seed).normal(size=(500, 4)).astype(np.float32)
    one, again = KMeans(8, seed).fit(blocks), KMeans(8, seed).fit(blocks)
    np.testing.assert_array_equal(one.centroids, again.centroids)


def test_numba_is_imported_late_and_may_have_nowhere_to_keep_machine_code():
    """An installation and a home that cannot be written to: compiled in memory."""
    script = (
        "import sys\n"
        "import numpy as np\n"
        "from tfcompress.clustering import METHODS, KMeans\n"
        "METHODS.names()\n"
        "print('numba' in sys.modules)\n"
        "from numba.core import caching\n"
        "caching.CacheImpl._locator_classes = []\n"
        "print(KMeans(2).fit(np.array([[0], [1], [9]], np.float32)).centroids.ravel())\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout == "False\n[0.5 9. ]\n", result.stderr
