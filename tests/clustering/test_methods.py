"""What holds for every clustering method."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tfcompress.clustering import METHODS, most
from tfcompress.errors import InputError

BLOCKS = st.tuples(st.integers(1, 30), st.integers(1, 3)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.floats(-10, 10, width=16))
)
# A network is trained at each fit.
SLOW = {"autoencoder": {"rounds": 1, "epochs": 2}}
FIND_THEIR_NUMBER = ("bgmm", "dbscan", "hdbscan", "kde")
TAKE_AUTO = [name for name in METHODS.names() if name not in FIND_THEIR_NUMBER]


def create(name, **arguments):
    return METHODS.create({name: arguments | SLOW.get(name, {})})


def kernel(size, count=600):
    return np.random.default_rng(0).laplace(size=(count, size)).astype(np.float32)


def sizes(name):
    return (4,) if name in SLOW else (1, 4)


def test_names():
    assert METHODS.names() == (
        "autoencoder",
        "bgmm",
        "dbscan",
        "density_linear",
        "entropy_kmeans",
        "gmm",
        "hashing",
        "hdbscan",
        "hierarchical",
        "kde",
        "kmeans",
        "linear",
        "lle",
        "random",
        "som",
        "spectral",
    )


def check(method, blocks, clusters):
    before = blocks.copy()
    codebook = method.fit(blocks)
    count, size = blocks.shape
    assert codebook.centroids.dtype == np.float32 and codebook.indices.dtype == np.int32
    assert codebook.centroids.shape[1:] == (size,) and codebook.indices.shape == (count,)
    assert 1 <= len(codebook.centroids) <= clusters
    assert set(codebook.indices) == set(range(len(codebook.centroids)))
    assert codebook.decode().shape == blocks.shape
    distinct = len(np.unique(blocks, axis=0))
    if distinct <= clusters:
        assert codebook.sse(blocks) == 0 and len(codebook.centroids) == distinct
    assert codebook.sse(blocks) <= ((blocks - blocks.mean(axis=0)) ** 2).sum() * 1.01 + 1e-6
    np.testing.assert_array_equal(codebook.centroids, method.fit(blocks).centroids)
    np.testing.assert_array_equal(blocks, before)
    return codebook


@pytest.mark.parametrize("name", [name for name in METHODS.names() if name not in SLOW])
@settings(max_examples=15)
@given(blocks=BLOCKS, clusters=st.integers(2, 6))
def test_the_contract_of_methods(name, blocks, clusters):
    method = create(name, clusters=clusters)
    check(method, blocks, clusters)
    assert METHODS.create(METHODS.describe(method)) == method


@pytest.mark.parametrize(("name", "size"), [(n, s) for n in METHODS.names() for s in sizes(n)])
def test_kernels_and_their_weights(name, size):
    blocks, method = kernel(size), create(name, clusters=5)
    codebook = check(method, blocks, 5)
    for index, centroid in enumerate(codebook.centroids):
        mean = blocks[codebook.indices == index].mean(axis=0)
        np.testing.assert_allclose(centroid, mean, rtol=1e-4, atol=1e-4)
    weight = np.random.default_rng(1).integers(0, 3, len(blocks)).astype(float)
    weighed = method.fit(blocks, weight)
    assert weighed.indices.shape == (len(blocks),) and 1 <= len(weighed.centroids) <= 5
    for index, centroid in enumerate(weighed.centroids):
        of = weighed.indices == index
        mean = np.average(blocks[of], axis=0, weights=weight[of])
        np.testing.assert_allclose(centroid, mean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", METHODS.names())
def test_blocks_without_weight_do_not_matter(name):
    """Far-off blocks of weight 0 change no centroid; they go to the nearest one."""
    blocks, method = kernel(2, 200), create(name, clusters=4)
    far = np.full((3, 2), 50, np.float32)
    weight = np.append(np.ones(len(blocks)), np.zeros(len(far)))
    alone = method.fit(blocks, np.ones(len(blocks)))
    both = method.fit(np.concatenate([blocks, far]), weight)
    if name in ("linear", "random"):  # levels lie in the range of all, the order of all is drawn
        assert len(np.unique(both.indices[len(blocks) :])) == 1
    else:
        assert abs(both.centroids).max() < 20
        assert len(both.centroids) <= 4 and len(alone.centroids) <= 4


@pytest.mark.parametrize("name", METHODS.names())
def test_going_on_from_clusters_found_before(name):
    blocks, method = kernel(3, 300), create(name, clusters=6)
    first = method.fit(blocks)
    moved = blocks + np.float32(0.01)
    again = method.fit(moved, start=first)
    assert again.sse(moved) <= 1.3 * first.sse(blocks)
    kept = blocks[:200]  # a start of another number of blocks
    assert len(method.fit(kept, start=first).centroids) <= 6


@pytest.mark.parametrize("name", METHODS.names())
def test_constant_kernels_single_blocks_and_distant_weights(name):
    for blocks in (np.full((40, 2), 0.3, np.float32), np.full((40, 1), -1, np.float32)):
        for count in (40, 1):
            codebook = create(name).fit(blocks[:count])
            np.testing.assert_array_equal(codebook.decode(), blocks[:count])
            assert len(codebook.centroids) == 1
    blocks = kernel(1, 300) * np.float32(1e-6)
    blocks[7] = 1.0
    codebook = create(name, clusters=4).fit(blocks)
    assert np.isfinite(codebook.centroids).all() and len(codebook.centroids) <= 4


@pytest.mark.parametrize(
    ("arguments", "fitted", "message"),
    [
        ({"clusters": 1}, ([[1]],), r"clusters of OWNER must be .*\[2, .*clusters=1"),
        ({"clusters": 2.5}, ([[1]],), "clusters of OWNER"),
        ({}, (np.ones(3),), r"blocks of OWNER must have shape \(n, d\)"),
        ({}, ([[np.nan]],), "blocks of OWNER must be finite"),
        ({}, ([[1], [2]], [1]), "sample_weight of OWNER must have shape"),
        ({}, ([[1], [2]], [1, -1]), "must be finite, not negative"),
    ],
)
def test_bad_input_is_one_line(arguments, fitted, message):
    for name in METHODS.names():
        owner = METHODS.get(name).__name__
        with pytest.raises(InputError, match=message.replace("OWNER", owner)) as caught:
            create(name, **arguments).fit(*fitted)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"lle": {"neighbors": 50, "components": 9}},
        {"spectral": {"neighbors": 50}},
        {"hdbscan": {"min_share": 0.5}},
        {"dbscan": {"min_share": 1}},
        {"hashing": {"functions": 10}},
        {"gmm": {"covariance": "tied"}},
    ],
    ids=str,
)
def test_methods_that_want_more_blocks_than_there_are_take_all(arguments):
    (name,) = arguments
    method = METHODS.create({name: arguments[name] | {"clusters": 3}})
    check(method, kernel(4, 5), 3)


@pytest.mark.parametrize("name", ["gmm", "bgmm"])
def test_covariances_that_need_too_much_memory_are_refused_with_the_way_out(name):
    blocks = np.random.default_rng(0).normal(size=(12, 3000)).astype(np.float32)
    message = r"1\.1 GB for 3000 values each: must be 'diag'. Received: covariance='full'"
    with pytest.raises(InputError, match=message) as caught:
        create(name, clusters=16).fit(blocks)
    assert "\n" not in str(caught.value)
    if name == "gmm":
        check(create(name, clusters=3, covariance="diag"), blocks, 3)


@pytest.mark.parametrize("name", TAKE_AUTO)
def test_auto_finds_three_heaps(name):
    centers = np.array([[0, 0], [9, 0], [0, 9]], np.float32)
    noise = np.random.default_rng(0).normal(0, 0.4, (50, 3, 2)).astype(np.float32)
    blocks = (centers + noise).reshape(-1, 2)
    method = create(name, clusters="auto", criterion="silhouette")
    assert most(method) == 64
    count = len(method.fit(blocks).centroids)
    # Levels along one axis cannot part heaps that lie in a plane; random picks and a network that
    # has hardly learned need not.
    if name in ("linear", "density_linear", "random", "autoencoder"):
        assert 2 <= count <= 64
    else:
        assert count == 3


def test_methods_that_find_their_number_take_no_auto():
    for name in FIND_THEIR_NUMBER:
        with pytest.raises(InputError, match="whole number"):
            create(name, clusters="auto")
