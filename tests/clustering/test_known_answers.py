"""Each method against an independent implementation or an answer known beforehand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.cluster import hierarchy
from scipy.spatial import distance
from sklearn import datasets, metrics

from tfcompress import clustering
from tfcompress.clustering import arrays, choose, kde, landmarks, som, ward
from tfcompress.errors import InputError

HEAPS = {
    "autoencoder": {"epochs": 5},
    "bgmm": {"concentration": 1e-3},
    "dbscan": {"min_share": 0.05},
    "gmm": {},
    "hashing": {},
    "hdbscan": {},
    "hierarchical": {},
    "kmeans": {},
    "lle": {"neighbors": 30},
    "som": {"lattice": "grid"},
    "spectral": {},
}


def heaps(count=40):
    centers = np.array([[0, 0, 0], [8, 0, 0], [0, 8, 0], [0, 0, 8]], np.float32)
    noise = np.random.default_rng(0).normal(0, 0.5, (count, 4, 3)).astype(np.float32)
    return (centers + noise).reshape(-1, 3), np.tile(np.arange(4), count)


@pytest.mark.parametrize("name", HEAPS)
def test_separate_heaps_are_recovered(name):
    blocks, truth = heaps()
    method = clustering.METHODS.create({name: {"clusters": 4} | HEAPS[name]})
    assert metrics.adjusted_rand_score(truth, method.fit(blocks).indices) == 1


@pytest.mark.parametrize("name", ["dbscan", "hdbscan", "bgmm"])
def test_the_number_of_heaps_is_found(name):
    blocks, _ = heaps()
    method = clustering.METHODS.create({name: {"clusters": 12, **HEAPS[name]}})
    assert len(method.fit(blocks).centroids) == 4


def test_moons_hang_together_for_spectral_and_dbscan_but_not_for_kmeans():
    blocks, truth = datasets.make_moons(300, noise=0.05, random_state=0)
    dense = clustering.DBSCAN(2, radius=0.2), clustering.HDBSCAN(2, min_share=0.1)
    for method in (clustering.Spectral(2), *dense):
        assert metrics.adjusted_rand_score(truth, method.fit(blocks).indices) > 0.95
    assert metrics.adjusted_rand_score(truth, clustering.KMeans(2).fit(blocks).indices) < 0.5


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), count=st.integers(2, 25), size=st.integers(1, 3))
def test_ward_is_scipys(seed, count, size):
    points = np.random.default_rng(seed).normal(size=(count, size))
    tree = ward.Tree.of(points, np.ones(count))
    theirs = hierarchy.linkage(points, "ward")
    np.testing.assert_allclose(np.sqrt(2 * tree.costs), theirs[:, 2], rtol=1e-9)
    for clusters in (1, 2, count):
        labels = hierarchy.fcluster(theirs, clusters, "maxclust")
        assert metrics.adjusted_rand_score(labels, tree.labels(clusters)) == 1


def test_ward_counts_masses_like_repetitions_and_ends_at_the_total_error():
    points = np.random.default_rng(0).normal(size=(12, 2))
    repeats = np.random.default_rng(1).integers(1, 5, 12)
    tree = ward.Tree.of(points, repeats.astype(float))
    repeated = np.repeat(points, repeats, axis=0)
    theirs = hierarchy.linkage(repeated, "ward")
    np.testing.assert_allclose(np.sqrt(2 * tree.costs), theirs[-11:, 2], rtol=1e-7)
    total = ((repeated - repeated.mean(axis=0)) ** 2).sum()
    assert tree.costs.sum() == pytest.approx(total)


def test_hierarchical_cuts_at_an_error():
    blocks = np.random.default_rng(0).laplace(size=(500, 1)).astype(np.float32)
    total = ((blocks - blocks.mean()) ** 2).sum()
    book = clustering.Hierarchical(64, max_error=0.02).fit(blocks)
    fewer = clustering.Hierarchical(len(book.centroids) - 1).fit(blocks)
    assert book.sse(blocks) <= 0.02 * total < fewer.sse(blocks)


def test_density_and_valleys_are_scipys():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(-3, 0.7, 300), rng.normal(0, 0.5, 200), [4.0, 4.2]])
    theirs = stats.gaussian_kde(values, bw_method=0.2)
    width = float(np.sqrt(theirs.covariance[0, 0]))
    sites, ordered = np.linspace(-6, 6, 400), np.sort(values)
    ours = kde.density(sites, ordered, np.ones(len(values)), width)
    expected = theirs(sites) * len(values) * width * np.sqrt(2 * np.pi)
    np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-9)
    heights = theirs(np.linspace(-6, 6, 20_001))
    falls = np.diff(heights)
    valleys = np.linspace(-6, 6, 20_001)[1:-1][(falls[:-1] < 0) & (falls[1:] > 0)]
    book = clustering.KernelDensity(bandwidth=width / values.std()).fit(values[:, None])
    assert len(book.centroids) == len(valleys) + 1 == 3
    groups = [values[book.indices == index] for index in range(3)]
    for left, right, valley in zip(groups[:-1], groups[1:], valleys, strict=True):
        assert left.max() < valley < right.min()


def test_the_critical_bandwidth_gives_as_many_modes_as_asked():
    values = np.random.default_rng(0).normal(size=(400, 1))
    assert len(clustering.KernelDensity(5, "critical").fit(values).centroids) == 5
    assert len(clustering.KernelDensity(5).fit(values).centroids) < 5


def test_bic_finds_three_gaussians_and_gmm_their_widths():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0, 0.1, 3000), rng.normal(0.9, 0.6, 2000)])
    values = np.append(values, rng.normal(6, 1, 2000))[:, None]
    book = clustering.GaussianMixture(clusters="auto").fit(values)
    assert len(book.centroids) == 3
    # The narrow one lies within reach of the wide one: weights on its far side belong to the wide.
    far = book.indices[np.argmin(abs(values + 0.7))]
    assert far == book.indices[np.argmin(abs(values - 0.9))]
    assert far != book.indices[np.argmin(abs(values))]


def test_gmm_is_scikit_learns():
    from sklearn import mixture

    blocks, _ = datasets.make_blobs(600, centers=3, n_features=2, random_state=4)
    blocks = blocks.astype(np.float32)
    theirs = mixture.GaussianMixture(3, random_state=0, n_init=3).fit_predict(blocks)
    ours = clustering.GaussianMixture(3).fit(blocks).indices
    assert metrics.adjusted_rand_score(theirs, ours) > 0.98


def test_a_full_covariance_of_long_blocks_is_refused_with_the_way_out():
    blocks = np.random.default_rng(0).normal(size=(20, 6000)).astype(np.float32)
    with pytest.raises(InputError, match="needs 4.3 GB for 6000 values each: must be 'diag'"):
        clustering.GaussianMixture(16).fit(blocks)
    assert len(clustering.GaussianMixture(2, "diag").fit(blocks).centroids) == 2


def test_a_step_of_the_map_is_kohonens():
    rng = np.random.default_rng(0)
    nodes, points = rng.normal(size=(4, 2)), rng.normal(size=(30, 2))
    places, masses = np.array([[0, 0], [0, 1], [1, 0], [1, 1.0]]), rng.random(30)
    expected = np.zeros((4, 2))
    for node in range(4):
        total = 0.0
        for point, mass in zip(points, masses, strict=True):
            winner = np.argmin(((nodes - point) ** 2).sum(axis=1))
            near = np.exp(-((places[node] - places[winner]) ** 2).sum() / (2 * 0.8**2))
            expected[node] += mass * near * point
            total += mass * near
        expected[node] /= total
    np.testing.assert_allclose(som.step(nodes, places, points, masses, 0.8), expected)


def test_neighbours_on_the_map_are_alike():
    """A line laid through a ring visits it in order: each node is next to the one before."""
    angle = np.random.default_rng(0).uniform(0, 2 * np.pi, 2000)
    blocks = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    book = clustering.SOM(12).fit(blocks)
    assert clustering.SOM(12, "grid").fit(blocks).sse(blocks) < 0.1 * 2000
    assert book.sse(blocks) < 0.1 * 2000


def test_lle_unrolls_a_spiral():
    """Along a spiral k-means in the embedding makes arcs; by distance arms are mixed up."""
    turn = np.sort(np.random.default_rng(0).uniform(3, 10, 500))
    blocks = np.stack([turn * np.cos(turn), turn * np.sin(turn)], axis=1)
    book = clustering.LLE(2, components=1, neighbors=8).fit(blocks)
    assert np.count_nonzero(np.diff(book.indices)) == 1
    assert np.count_nonzero(np.diff(clustering.KMeans(2).fit(blocks).indices)) > 1


def test_density_linear_levels_hold_equally_many():
    values = np.random.default_rng(0).permutation(1600).astype(np.float32)[:, None]
    book = clustering.DensityLinear(16).fit(values)
    assert np.bincount(book.indices).tolist() == [100] * 16
    np.testing.assert_allclose(book.centroids[:, 0], np.arange(16) * 100 + 49.5)
    assert book.entropy_bits == pytest.approx(4)
    zeros = np.concatenate([np.zeros((1600, 1), np.float32), values + 1])
    assert len(np.unique(clustering.DensityLinear(16).fit(zeros).indices[:1600])) == 1


@pytest.mark.parametrize("name", ["random", "density_linear"])
def test_lloyd_comes_near_the_optimum(name):
    values = np.random.default_rng(0).laplace(size=(3000, 1)).astype(np.float32)
    errors = [
        clustering.METHODS.create({name: {"iterations": steps}}).fit(values).sse(values)
        for steps in (0, 3, 100)
    ]
    optimum = clustering.KMeans(16).fit(values).sse(values)
    assert errors[0] > errors[1] > errors[2] >= optimum * (1 - 1e-6)
    assert errors[2] < 1.5 * optimum


@pytest.mark.parametrize("size", [1, 4])
def test_assign_is_scipys_nearest(size):
    rng = np.random.default_rng(0)
    blocks = rng.normal(size=(70_000, size)).astype(np.float32)
    centroids = rng.normal(size=(9, size)).astype(np.float32)
    apart = distance.cdist(blocks, centroids)
    found = arrays.assign(blocks, centroids)
    assert found.dtype == np.int32
    ours = np.take_along_axis(apart, found[:, None].astype(int), 1)[:, 0]
    np.testing.assert_allclose(ours, apart.min(axis=1), atol=1e-6)


@pytest.mark.parametrize("name", ["hierarchical", "som", "gmm"])
def test_landmarks_stay_near_what_all_scalars_give(name, monkeypatch):
    values = np.random.default_rng(0).laplace(size=(6000, 1)).astype(np.float32)
    method = clustering.METHODS.create(name)
    exact = method.fit(values).sse(values)
    create = landmarks.Landmarks.of
    monkeypatch.setattr(
        landmarks.Landmarks,
        "of",
        lambda blocks, weight, seed=0, *most: create(blocks, weight, seed, 700, 700),
    )
    assert method.fit(values).sse(values) == pytest.approx(exact, rel=0.04)


def test_landmarks_of_blocks_stand_for_them():
    blocks = np.random.default_rng(0).normal(size=(30_000, 2)).astype(np.float32)
    weight = np.random.default_rng(1).random(30_000)
    seen = landmarks.Landmarks.of(blocks, weight, most=256)
    assert seen.points.shape == (256, 2)
    assert seen.masses.sum() == pytest.approx(30_000)
    mean = np.average(blocks, axis=0, weights=weight)
    np.testing.assert_allclose(np.average(seen.points, axis=0, weights=seen.masses), mean)
    heavy = seen.sample(1000, seed=0)
    assert heavy.shape == (1000, 2) and abs(heavy.mean(axis=0) - mean).max() < 0.1


def test_rare_blocks_are_landmarks_where_there_are_few():
    blocks = np.zeros((50_000, 2), np.float32)
    blocks[123], blocks[40_000] = 1, 2
    book = clustering.Hierarchical(3).fit(blocks)
    np.testing.assert_array_equal(book.decode(), blocks)


def lowest_cost(values, clusters, bit):
    """Tries every partition of the sorted values into intervals."""
    values, count = np.sort(values), len(values)
    best = np.inf
    for mask in range(1 << (count - 1)):
        if mask.bit_count() >= clusters:
            continue
        cuts = [0, *(i + 1 for i in range(count - 1) if mask >> i & 1), count]
        cost = 0.0
        for begin, end in zip(cuts[:-1], cuts[1:], strict=True):
            part = values[begin:end]
            cost += ((part - part.mean()) ** 2).sum()
            cost += bit * len(part) * np.log2(count / len(part))
        best = min(best, cost)
    return best


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), clusters=st.integers(2, 4), price=st.floats(0, 0.5))
def test_entropy_kmeans_reaches_the_lowest_cost(seed, clusters, price):
    values = np.random.default_rng(seed).laplace(size=9).astype(np.float32).astype(float)
    book = clustering.EntropyKMeans(clusters, price).fit(values[:, None])
    bit = price * values.var()
    cost = book.sse(values[:, None]) + bit * 9 * book.entropy_bits
    assert cost == pytest.approx(lowest_cost(values, clusters, bit), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("size", [1, 2])
def test_entropy_kmeans_beats_kmeans_at_equal_bits(size):
    blocks = np.random.default_rng(0).laplace(size=(20_000, size)).astype(np.float32)
    plain = clustering.KMeans(8).fit(blocks)
    book = clustering.EntropyKMeans(24, 0.06 if size == 1 else 0.12).fit(blocks)
    assert book.entropy_bits < plain.entropy_bits
    assert book.sse(blocks) < 0.95 * plain.sse(blocks)


def test_no_price_for_bits_is_kmeans():
    values = np.random.default_rng(0).normal(size=(3000, 1)).astype(np.float32)
    free, plain = clustering.EntropyKMeans(16, 0).fit(values), clustering.KMeans(16).fit(values)
    assert free.sse(values) == pytest.approx(plain.sse(values), rel=1e-4)


@pytest.mark.parametrize("criterion", choose.CRITERIA)
def test_auto_finds_the_number_of_heaps(criterion):
    blocks, _ = heaps()
    assert len(clustering.KMeans("auto", criterion=criterion).fit(blocks).centroids) == 4
    values = np.concatenate([blocks[:, :1] - 20, blocks[:, :1] + 20])
    book = clustering.Hierarchical("auto", criterion=criterion).fit(values)
    assert len(book.centroids) in (2, 4)  # two pairs of two heaps


@pytest.mark.parametrize("criterion", choose.CRITERIA)
@pytest.mark.parametrize("method", [clustering.KMeans, clustering.Hierarchical, clustering.Linear])
def test_auto_loses_nothing_of_few_values_that_come_again(method, criterion):
    values = np.repeat(np.float32([[0], [1], [5], [5.5], [-7]]), 100, 0)
    book = method("auto", criterion=criterion).fit(values)
    np.testing.assert_array_equal(book.decode(), values)
    once = np.random.default_rng(0).normal(size=(60, 1)).astype(np.float32)
    assert len(method("auto", criterion="knee").fit(once).centroids) < 30


def test_simplified_silhouette_by_hand():
    points = np.array([[0.0], [1.0], [9.0]])
    labels, masses = np.array([0, 0, 1]), np.ones(3)
    # Centroids 0.5 and 9: a = 0.5, 0.5, 0 and b = 9, 8, 8.5.
    expected = ((9 - 0.5) / 9 + (8 - 0.5) / 8 + 1) / 3
    assert choose.simplified_silhouette(points, masses, labels) == pytest.approx(expected)


def test_quality_of_scalars_blocks_and_levels():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2000, 1)).astype(np.float32)
    figures = clustering.quality(values, clustering.Linear(8).fit(values))
    assert figures.sse_over_optimum > 1.05 and figures.distinct_values == 8
    assert figures.codebook_bytes == 32
    best = clustering.quality(values, clustering.KMeans(8).fit(values))
    assert best.sse_over_optimum == pytest.approx(1, rel=1e-6)
    assert best.to_dict()["entropy_bits"] > figures.entropy_bits
    blocks, truth = heaps()
    book = clustering.KMeans(4).fit(blocks)
    figures = clustering.quality(blocks, book)
    assert figures.silhouette == pytest.approx(metrics.silhouette_score(blocks, truth), abs=1e-6)
    assert figures.sse_over_optimum is None and figures.entropy_bits == pytest.approx(2 / 3)
    with pytest.raises(InputError, match="codebook of quality must be of blocks of shape"):
        clustering.quality(values, book)


def test_levels_add_up():
    blocks = np.random.default_rng(0).normal(size=(4000, 4)).astype(np.float32)
    books = clustering.additive(blocks, {"kmeans": {"clusters": 16}}, levels=2)
    error = ((blocks - clustering.decode(books)) ** 2).sum()
    assert error < 0.75 * books[0].sse(blocks)
    figures = clustering.quality(blocks, books)
    assert figures.sse == pytest.approx(error, rel=1e-4)
    assert figures.codebook_bytes == 2 * 16 * 4 * 4
    left = blocks - books[0].decode()
    for index in range(16):  # no bias is left to the second level
        assert abs(left[books[0].indices == index].mean(axis=0)).max() < 1e-5
    assert len(clustering.additive(np.ones((5, 1)), levels=3)) == 1
    with pytest.raises(InputError, match="levels of additive"):
        clustering.additive(blocks, levels=0)
