"""The pictures of one clustering: a kernel as it was and as it became.

    before = model.get_layer("head").kernel
    after = tfc.cluster(model, clusters=16).get_layer("head").kernel
    cluster_plots.density(before, after).savefig("density.png")

Kernels are arrays of one shape, numbers of any kind and finite. Weights that are zero before and
after are left out; of the others up to 8,192 are drawn, so that large kernels take no longer.
"""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from tfcompress.clustering import choose, kde
from tfcompress.errors import require
from tfcompress.report import plots
from tfcompress.weights import matrix_shape

_SAMPLE = 8192  # weights that are drawn
_SITES = 400  # at which the density is estimated
_MOST_LINES = 256  # centroids that are drawn one by one
_BINS = 80
_PIXELS = 256  # rows and columns of a kernel that are drawn
_COLORS = "tab20"


def clusters(before: ArrayLike, after: ArrayLike, axes: Axes | None = None) -> Figure:
    """Draws the weights in ascending order, each in its cluster's color, and what they became.

    `axes`: of a figure of your own to draw into.
    """
    old, new = _drawn(before, after)
    figure, axes = _on(axes, 5.0, 3.2)
    share = (np.arange(len(old)) + 0.5) / max(len(old), 1)
    axes.scatter(share, old, c=_labels(new)[1] % 20, cmap=_COLORS, vmin=0, vmax=19, s=3)
    axes.scatter(share, new, color="black", s=0.5, label="after")
    axes.set_xlabel("weights in ascending order (share)")
    axes.set_ylabel("value")
    axes.set_title(f"{len(np.unique(new)):,} values among {len(old):,} weights", fontsize=9)
    return figure


def density(before: ArrayLike, after: ArrayLike | None = None, axes: Axes | None = None) -> Figure:
    """Draws a histogram of the weights, their estimated density, and the centroids as lines.

    The density is a sum of Gaussians of Silverman's bandwidth; a centroid's line goes up to it.
    """
    old, new = _drawn(before, before if after is None else after)
    figure, axes = _on(axes, 5.0, 3.2)
    axes.set_xlabel("value of the weight")
    axes.set_ylabel("density")
    if not len(old):
        return figure
    axes.hist(old, _edges(old), density=True, color=plots.MUTED, label="weights")
    width = kde.silverman(old, np.ones(len(old)))
    if width > 0:
        sites = np.linspace(old[0] - 3 * width, old[-1] + 3 * width, _SITES)
        axes.plot(sites, _heights(sites, old, width), color=plots.AFTER, label="estimated density")
    centroids = np.unique(new)
    if after is not None and len(centroids) <= _MOST_LINES:
        top = _heights(centroids, old, width) if width > 0 else axes.get_ylim()[1]
        axes.vlines(centroids, 0, top, color=plots.ACCENT, linewidth=1.2, label="centroids")
    axes.legend(frameon=False, fontsize=7)
    return figure


def reconstruction(before: ArrayLike, after: ArrayLike) -> Figure:
    """Draws a kernel as a matrix of inputs x outputs: before, after, and what is lost.

    Of a large kernel the upper left 256 x 256 weights are drawn. The three share their colors.
    """
    old, new = _pair(before, after)
    figure = Figure(figsize=(9.0, 3.4), layout="constrained")
    part = [w.reshape(matrix_shape(w.shape))[:_PIXELS, :_PIXELS] for w in (old, new, old - new)]
    largest = max(np.abs(old).max(), np.abs(new).max()) or 1.0
    panels = figure.subplots(1, 3)
    for axes, matrix, title in zip(panels, part, ("before", "after", "lost"), strict=True):
        image = axes.imshow(
            matrix, cmap="RdBu", vmin=-largest, vmax=largest, aspect="auto", interpolation="nearest"
        )
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("outputs")
    panels[0].set_ylabel("inputs")
    figure.colorbar(image, ax=list(panels), shrink=0.8)
    power = float((old**2).sum())
    lost = float(((old - new) ** 2).sum())
    share = f", {lost / power:.3%} of the squared weights" if power else ""
    figure.suptitle(f"squared error {lost:.4g}{share}", fontsize=9)
    return figure


def silhouettes(before: ArrayLike, after: ArrayLike, axes: Axes | None = None) -> Figure:
    """Draws each weight's silhouette in a band for each cluster, and their mean as a line.

    It is the simplified one: (b - a) / max(a, b) with the distances a to the own centroid and b to
    the nearest other one; see `clustering.choose`.
    """
    old, new = _drawn(before, after)
    figure, axes = _on(axes, 4.0, 4.0)
    axes.set_xlabel("silhouette")
    axes.set_ylabel("clusters, by their value")
    axes.set_yticks([])
    if not len(old):
        return figure
    centroids, labels = _labels(new)
    found = choose.silhouettes(old[:, None], labels, centroids[:, None])
    order = np.lexsort((found, labels))
    ends = np.cumsum(np.bincount(labels))
    for number, rows in enumerate(np.split(order, ends[:-1])):
        begin = ends[number] - len(rows)
        axes.fill_betweenx(
            np.arange(begin, ends[number] + 1),
            0,
            np.append(found[rows], found[rows[-1]]),
            color=f"C{number % 10}",
            step="post",
        )
    axes.axvline(found.mean(), color="black", linestyle="--", linewidth=0.8)
    axes.set_title(f"{len(centroids):,} clusters, mean {found.mean():.3f}", fontsize=9)
    return figure


def errors(curve: Mapping[int, float], knee: int, axes: Axes | None = None) -> Figure:
    """Draws the sum of squared errors over the number of clusters, on logarithmic axes.

    `curve`: by number of clusters; `knee`: the number that is marked.
    """
    figure, axes = _on(axes, 4.0, 3.2)
    axes.plot(list(curve), list(curve.values()), marker=".", color=plots.AFTER)
    axes.axvline(knee, color=plots.ACCENT, linestyle="--", linewidth=1, label=f"knee: {knee}")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    if any(value > 0 for value in curve.values()):
        axes.set_yscale("log", nonpositive="mask")
    axes.set_xlabel("clusters")
    axes.set_ylabel("sum of squared errors")
    axes.legend(frameon=False, fontsize=7)
    return figure


def confusion(before: ArrayLike, after: ArrayLike) -> Figure:
    """Draws two confusion matrices, and the change: numbers of samples, (classes, classes).

    Rows are true classes, columns what the model says. Up to 20 classes the numbers are written.
    """
    old, new = (np.asarray(matrix, np.int64) for matrix in (before, after))
    rule = "must be two square matrices of one shape"
    square = old.ndim == 2 and old.shape == new.shape == old.shape[::-1]
    require(square, "confusion", rule, before=old.shape, after=new.shape)
    figure = Figure(figsize=(11.0, 4.3), layout="constrained")
    panels = figure.subplots(1, 3)
    titles = [f"{name}: {_accuracy(m):.2%} right" for name, m in (("before", old), ("after", new))]
    for axes, matrix, title in zip(panels, (old, new, new - old), (*titles, "change"), strict=True):
        largest = max(int(np.abs(matrix).max()), 1)
        change = title == "change"
        axes.imshow(matrix, "RdBu" if change else "Blues", vmin=-change * largest, vmax=largest)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("said")
        if len(matrix) > 20:
            continue
        for (row, column), count in np.ndenumerate(matrix):
            dark = abs(count) > 0.6 * largest
            text = f"{count:+}" if change and count else str(count)
            how = {"ha": "center", "va": "center", "fontsize": 6}
            axes.text(column, row, text, color="white" if dark else "black", **how)
    panels[0].set_ylabel("true class")
    return figure


def _accuracy(matrix: np.ndarray) -> float:
    return float(np.trace(matrix)) / max(int(matrix.sum()), 1)


def _pair(before: ArrayLike, after: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    old, new = np.asarray(before, np.float64), np.asarray(after, np.float64)
    rule = "must have one shape, not empty"
    same = old.shape == new.shape and old.size > 0
    require(same, "Kernels before and after", rule, before=old.shape, after=new.shape)
    finite = np.isfinite(old).all() and np.isfinite(new).all()
    require(finite, "Kernels before and after", "must be finite")
    return old, new


def _drawn(before: ArrayLike, after: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Returns the weights that are drawn, float64 (m,) each, by what they were."""
    old, new = (w.ravel() for w in _pair(before, after))
    kept = np.flatnonzero((old != 0) | (new != 0))
    if len(kept) > _SAMPLE:
        kept = np.random.default_rng(0).choice(kept, _SAMPLE, replace=False)
    kept = kept[np.argsort(old[kept], kind="stable")]
    return old[kept], new[kept]


def _labels(new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    centroids, labels = np.unique(new, return_inverse=True)
    return centroids, labels.reshape(-1)


def _heights(sites: np.ndarray, old: np.ndarray, width: float) -> np.ndarray:
    total = kde.density(sites, old, np.ones(len(old)), width)
    return total / (len(old) * width * np.sqrt(2 * np.pi))


def _edges(values: np.ndarray) -> list[float]:
    """Returns the borders of bins: even ones, or between neighbours where few values differ."""
    distinct = np.unique(values)
    if len(distinct) > _MOST_LINES:
        return np.linspace(values[0], values[-1], _BINS + 1).tolist()
    if len(distinct) == 1:
        half = 0.5 * abs(distinct[0]) or 0.5
        return [distinct[0] - half, distinct[0] + half]
    middles = (distinct[1:] + distinct[:-1]) / 2
    ends = 2 * distinct[[0, -1]] - middles[[0, -1]]
    return [ends[0], *middles, ends[1]]


def _on(axes: Axes | None, width: float, height: float) -> tuple[Figure, Axes]:
    if axes is None:
        return plots.new_figure(width, height)
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure, axes
