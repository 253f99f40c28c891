"""The pictures of one clustering: what is drawn is what the weights say."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from tfcompress.clustering import KMeans, quality
from tfcompress.errors import InputError
from tfcompress.report import cluster_plots, plots


@pytest.fixture(scope="module")
def kernel():
    before = np.random.default_rng(0).normal(size=(3, 3, 4, 8)).astype(np.float32)
    before[0] = 0
    used = before[before != 0].reshape(-1, 1)
    book = KMeans(clusters=5).fit(used)
    after = before.copy()
    after[before != 0] = book.decode()[:, 0]
    return before, after, used, book


def test_clusters_ascend_and_each_weight_has_its_value(kernel):
    before, after, used, _ = kernel
    (axes,) = cluster_plots.clusters(before, after).axes
    old, new = (points.get_offsets() for points in axes.collections)
    np.testing.assert_allclose(old[:, 1], np.sort(used[:, 0]))
    np.testing.assert_allclose(new[:, 1], np.sort(after[before != 0]))
    assert len(set(axes.collections[0].get_array())) == 5


def test_density_has_area_one_and_a_line_for_each_centroid(kernel):
    before, after, _, book = kernel
    (axes,) = cluster_plots.density(before, after).axes
    x, y = axes.lines[0].get_data()
    assert np.trapezoid(y, x) == pytest.approx(1, abs=0.01)
    lines = axes.collections[0].get_segments()
    assert [line[0][0] for line in lines] == pytest.approx(np.sort(book.centroids[:, 0]))
    assert not cluster_plots.density(before).axes[0].collections
    few = cluster_plots.density(after).axes[0]  # a bar for each value
    assert sum(bar.get_width() * bar.get_height() for bar in few.patches) == pytest.approx(1)
    assert len(few.patches) == 5


def test_silhouettes_are_those_of_quality(kernel):
    before, after, used, book = kernel
    (axes,) = cluster_plots.silhouettes(before, after).axes
    assert len(axes.collections) == 5
    mean = axes.lines[0].get_xdata()[0]
    assert mean == pytest.approx(quality(used, book).silhouette, rel=1e-4)


def test_reconstruction_draws_what_is_lost(kernel):
    before, after, _, _ = kernel
    figure = cluster_plots.reconstruction(before, after)
    matrices = [axes.images[0].get_array() for axes in figure.axes[:3]]
    np.testing.assert_allclose(matrices[2], (before - after).reshape(36, 8), atol=1e-6)
    np.testing.assert_allclose(matrices[0] - matrices[1], matrices[2])


def test_confusion_draws_both_and_the_change():
    before, after = np.array([[8, 2], [1, 9]]), np.array([[6, 4], [1, 9]])
    figure = cluster_plots.confusion(before, after)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["before: 85.00% right", "after: 75.00% right", "change"]
    assert [text.get_text() for text in figure.axes[2].texts] == ["-2", "+2", "0", "0"]
    many = cluster_plots.confusion(np.eye(30, dtype=int), np.eye(30, dtype=int))
    assert not many.axes[0].texts


@pytest.mark.filterwarnings("error")
def test_constant_kernels_are_drawn_into_a_figure_of_the_users():
    figure = Figure()
    for row, value in zip(figure.subplots(2, 3), (0.0, 3.0), strict=True):
        same = np.full((4, 3), value)
        for axes, name in zip(row, ("clusters", "density", "silhouettes"), strict=True):
            assert getattr(cluster_plots, name)(same, same, axes) is figure
    assert plots.png(figure).startswith(b"\x89PNG")
    assert plots.png(cluster_plots.reconstruction(same, same)).startswith(b"\x89PNG")
    assert plots.png(cluster_plots.errors({2: 0.0}, 2)).startswith(b"\x89PNG")


def test_large_kernels_are_drawn_by_a_sample():
    before = np.random.default_rng(0).normal(size=(300, 400))
    axes = cluster_plots.clusters(before, np.round(before)).axes[0]
    assert len(axes.collections[0].get_offsets()) == 8192
    assert cluster_plots.reconstruction(before, before).axes[0].images[0].get_array().shape == (
        256, 256
    )  # fmt: skip


def test_bad_input_is_one_line():
    with pytest.raises(InputError, match="must have one shape, not empty"):
        cluster_plots.clusters(np.ones(3), np.ones(4))
    with pytest.raises(InputError, match="must be finite"):
        cluster_plots.density(np.array([1.0, np.nan]))
    with pytest.raises(InputError, match="two square matrices of one shape"):
        cluster_plots.confusion(np.ones((2, 3)), np.ones((2, 3)))
