"""What a model's weights look like, kernel by kernel, and how many values they fall into."""

import csv
import dataclasses
import io
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import rich.box
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tfcompress import clustering, tflite
from tfcompress.clustering import choose, landmarks
from tfcompress.errors import InputError, require
from tfcompress.files import written_whole
from tfcompress.report import cluster_plots, plots
from tfcompress.tflite.flatbuffer import Flatbuffer
from tfcompress.weights import kernels

_SIXTEEN = 16
_MOST = 1024  # clusters that are tried
_SAMPLE = 8192  # weights that are kept for the plots


@dataclasses.dataclass(frozen=True)
class Clusters:
    """What so many clusters make of a kernel: squared error, and silhouette in [-1, 1]."""

    clusters: int
    sse: float
    silhouette: float


@dataclasses.dataclass(frozen=True, eq=False)
class KernelWeights:
    """What the weights of one kernel look like.

    path, shape, dtype: where they are and what they are; a `.tflite` file's integers are looked at
        as stored, less their zero-point.
    weights: how many. zeros: share in [0, 1] that is zero. distinct_values: zero among them.
    low, high, mean, std: of all weights. kurtosis: the excess over a normal distribution's, 0 for
        one value. entropy_bits: per weight, of the values as independent symbols.
    knee: the clusters that `clusters="auto"` finds, for the weights that are not zero: where the
        error bends most; where no more than two values differ, as many.
    best_silhouette: the number of clusters that lie farthest apart.
    explained: share in [0, 1] of the variance of the weights that are not zero which 16 clusters
        keep.
    trials: for each number of clusters that was tried, the best there is; of few values, as many
        clusters as well.
    sample, centroids: for the plots: up to 8,192 weights that are not zero, ascending, at even
        steps of their distribution; the values of `knee` clusters.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    weights: int
    zeros: float
    distinct_values: int
    low: float
    high: float
    mean: float
    std: float
    kurtosis: float
    entropy_bits: float
    knee: int
    best_silhouette: int
    explained: float
    trials: tuple[Clusters, ...]
    sample: np.ndarray
    centroids: np.ndarray

    @property
    def clustered(self) -> np.ndarray:
        """What `knee` clusters make of the sample."""
        borders = (self.centroids[1:] + self.centroids[:-1]) / 2
        return self.centroids[np.searchsorted(borders, self.sample)]

    def to_dict(self) -> dict[str, Any]:
        """Returns the numbers as plain values, fit for JSON."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del found["sample"]
        return found | {
            "shape": list(self.shape),
            "centroids": self.centroids.tolist(),
            "trials": [dataclasses.asdict(trial) for trial in self.trials],
        }

    def plot(self) -> Figure:
        """Returns a figure: histogram, density and centroids; errors over clusters; silhouettes."""
        figure = Figure(figsize=(12.0, 3.6), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        for axes in (left, middle, right):
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=8)
        left.set_visible(len(self.sample) > 0)
        right.set_visible(len(self.sample) > 0)
        middle.set_visible(len(self.trials) > 0)
        if len(self.sample):
            cluster_plots.density(self.sample, self.clustered, left)
            cluster_plots.silhouettes(self.sample, self.clustered, right)
        if self.trials:
            curve = {trial.clusters: trial.sse for trial in self.trials}
            cluster_plots.errors(curve, self.knee, middle)
        title = f"{self.path}: {self.weights:,} weights, {self.zeros:.1%} zeros"
        figure.suptitle(plots.plain_text(title), fontsize=10)
        return figure


@dataclasses.dataclass(frozen=True)
class WeightsReport:
    """What a model's weights look like; see `weights_report`.

    `str()` is a table, `report["conv/kernel"]` one kernel's numbers with a `plot()`, `save(folder)`
    writes all of it.
    """

    kernels: tuple[KernelWeights, ...]

    def __getitem__(self, path: str) -> KernelWeights:
        found = {kernel.path: kernel for kernel in self.kernels}
        if path not in found:
            raise KeyError(f"{path}; there are {', '.join(found)}")
        return found[path]

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as plain values, fit for JSON."""
        return {"kernels": [kernel.to_dict() for kernel in self.kernels]}

    def to_csv(self) -> str:
        """Returns the table as text: a line for each kernel, numbers in full."""
        rows = [kernel.to_dict() for kernel in self.kernels]
        names = [name for name in rows[0] if name not in ("trials", "centroids")]
        text = io.StringIO()
        writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(row | {"shape": "x".join(map(str, row["shape"]))} for row in rows)
        return text.getvalue()

    def __str__(self) -> str:
        text = io.StringIO()
        Console(file=text, width=1000).print(self.table())
        lines = [line.rstrip() for line in text.getvalue().splitlines()]
        constant = [kernel.path for kernel in self.kernels if kernel.distinct_values == 1]
        lines += [f"{path} is constant: one cluster" for path in constant]
        return "\n".join(line for line in lines if line)

    def table(self) -> Table:
        """Returns the table for a `rich` console."""
        table = Table(box=rich.box.SIMPLE_HEAD)
        for number, title in enumerate(_TITLES):
            table.add_column(title, justify="right" if number > 1 else "left", no_wrap=True)
        for kernel in self.kernels:
            table.add_row(*map(Text, _cells(kernel)))
        return table

    def save(self, folder: str | os.PathLike) -> list[pathlib.Path]:
        """Writes weights.csv, weights.json and a picture of each kernel; returns their paths.

        Raises:
            InputError: a file that cannot be written.
        """
        folder = pathlib.Path(folder)
        contents = {
            "weights.csv": self.to_csv().encode(),
            "weights.json": json.dumps(self.to_dict(), indent=2).encode(),
        }
        paths = []
        for name, content in contents.items():
            paths.append(_written(folder / name, content))
        for number, kernel in enumerate(self.kernels):
            name = re.sub(r"[^\w.-]+", "_", kernel.path)[-100:]
            paths.append(_written(folder / f"{number:03}-{name}.png", plots.png(kernel.plot())))
        return paths


def weights_report(
    model: keras.Model | Flatbuffer,
    clusters: tuple[int, int] = (2, 64),
    say: Callable[[str], None] | None = None,
) -> WeightsReport:
    """Returns, kernel by kernel, what the weights of a model look like; it stays as it is.

    Beside the numbers of their distribution it says into how many values they fall: for numbers of
    clusters from the fewest to the most the optimum is found (of 8,192 runs of neighbours, where a
    kernel has more values), with its error and silhouette. Weights that are zero stay out of that,
    as they do in `tfc.cluster`. A kernel of 25 million weights takes some seconds.

    Args:
        model: a Keras model, or a `.tflite` file's content or path, whose integers are looked at.
        clusters: the fewest and the most that are tried, all up to 16 and every fourth or so above,
            in [2, 1024]. With (2, 64) the knee is what `clusters="auto"` takes.
        say: is called with a line of progress before each kernel.

    Raises:
        InputError: a model without kernels, weights that are not finite, wrong numbers of clusters.

    Sources: Satopaa et al. 2011 (the knee); Hruschka et al. 2006 (the simplified silhouette).

    >>> initial = keras.initializers.GlorotUniform(seed=0)
    >>> head = keras.layers.Dense(100, kernel_initializer=initial, name="head")
    >>> weights_report(keras.Sequential([keras.Input((8,)), head]))["head/kernel"].knee
    5
    """
    low, high = _checked(clusters)
    found: list[KernelWeights] = []
    for count, (path, dtype, shape, values) in _kernels(model):
        if say is not None:
            size = int(np.prod(shape))
            say(f"kernel {len(found) + 1} of {count}: {path}, {size:,} weights")
        found.append(_look(path, dtype, shape, values, low, high))
    require(found, "The model", "must have at least one kernel to look at")
    return WeightsReport(tuple(found))


_TITLES = (
    "kernel", "shape", "type", "weights", "zeros", "distinct", "range", "std", "kurtosis", "bits",
    "knee", "silhouette", "explained by 16",
)  # fmt: skip


def _cells(kernel: KernelWeights) -> tuple[str, ...]:
    return (
        kernel.path,
        "x".join(map(str, kernel.shape)),
        kernel.dtype,
        f"{kernel.weights:,}",
        f"{kernel.zeros:.1%}",
        f"{kernel.distinct_values:,}",
        f"{kernel.low:.4g} .. {kernel.high:.4g}",
        f"{kernel.std:.4g}",
        f"{kernel.kurtosis:.2f}",
        f"{kernel.entropy_bits:.2f}",
        str(kernel.knee),
        str(kernel.best_silhouette),
        f"{kernel.explained:.2%}",
    )


def _checked(clusters: Any) -> tuple[int, int]:
    pair = tuple(clusters) if isinstance(clusters, Sequence) else ()
    whole = len(pair) == 2 and all(type(number) is int for number in pair)
    rule = f"must be two whole numbers, ascending, in [2, {_MOST}]"
    valid = whole and 2 <= pair[0] < pair[1] <= _MOST
    require(valid, "clusters of weights_report", rule, clusters=clusters)
    return pair[0], pair[1]


def _kernels(
    model: keras.Model | Flatbuffer,
) -> Iterator[tuple[int, tuple[str, str, tuple[int, ...], np.ndarray]]]:
    """Yields the number of kernels and of each path, type, shape and values, one at a time."""
    if isinstance(model, keras.Model):
        found = kernels(model)
        for kernel in found:
            shape = tuple(kernel.variable.shape)
            yield len(found), (kernel.path, kernel.variable.dtype, shape, kernel.value())
        return
    if not isinstance(model, bytes | bytearray | str | os.PathLike):
        raise InputError(f"A model must be a Keras 3 model or a .tflite file. Received: {model!r}")
    stored = list(tflite.stored_kernels(model))
    for weight, values in stored:
        size = weight.size - values.size  # the zeros of a sparse kernel
        values = np.append(values.ravel(), np.zeros(size, values.dtype)) if size else values
        yield len(stored), (weight.name, weight.dtype.lower(), weight.shape, values)


def _look(
    path: str, dtype: str, shape: tuple[int, ...], values: np.ndarray, low: int, high: int
) -> KernelWeights:
    values = values.astype(np.float32, copy=False).ravel()
    require(np.isfinite(values).all(), f"Weights of {path}", "must be finite")
    distinct, counts = np.unique(values, return_counts=True)
    shares = counts / values.size
    used = values[values != 0]
    trials, knee, seen = _trials(used, low, high)
    best = max(trials, key=lambda trial: trial.silhouette, default=None)
    mean, std, kurtosis = _moments(values)
    return KernelWeights(
        path=path,
        shape=shape,
        dtype=dtype,
        weights=values.size,
        zeros=1 - used.size / values.size,
        distinct_values=len(distinct),
        low=float(distinct[0]),
        high=float(distinct[-1]),
        mean=mean,
        std=std,
        kurtosis=kurtosis,
        entropy_bits=float(-(shares * np.log2(shares)).sum()) + 0.0,
        knee=knee,
        best_silhouette=knee if best is None else best.clusters,
        explained=_explained(seen),
        trials=trials,
        sample=np.sort(seen.sample(_SAMPLE, 0)[:, 0]) if seen else np.empty(0),
        centroids=_centroids(seen, knee),
    )


def _trials(
    used: np.ndarray, low: int, high: int
) -> tuple[tuple[Clusters, ...], int, landmarks.Landmarks | None]:
    """Returns what numbers of clusters make of the weights, the knee, and what stood for them."""
    if not used.size:
        return (), 0, None
    seen = landmarks.Landmarks.of(used.reshape(-1, 1), None)
    count = len(seen.points)
    chosen = [number for number in choose.tried(low, high) if number < count]
    exact = [count] if low <= count <= high else []
    trials = []
    for number in chosen + exact:
        labels = _labels(seen, number)
        error = choose.sse(seen.points, seen.masses, labels)
        silhouette = choose.simplified_silhouette(seen.points, seen.masses, labels)
        trials.append(Clusters(number, error, silhouette))
    if not chosen:
        return tuple(trials), count, seen
    whole = choose.sse(seen.points, seen.masses, np.zeros(count, np.int64))
    # As many clusters as values are no bend, and `auto` does not try them.
    curve = {1: whole} | {trial.clusters: trial.sse for trial in trials[: len(chosen)]}
    return tuple(trials), choose.knee_of_errors(curve), seen


def _labels(seen: landmarks.Landmarks, clusters: int) -> np.ndarray:
    points = seen.points.astype(np.float32)
    return clustering.KMeans(clusters).fit(points, seen.masses).indices


def _explained(seen: landmarks.Landmarks | None) -> float:
    """Returns the share of the variance that 16 clusters keep; of one value, all."""
    if seen is None or len(seen.points) <= _SIXTEEN:
        return 1.0
    whole = choose.variance(seen.points, seen.masses) * float(seen.masses.sum())
    return 1 - choose.sse(seen.points, seen.masses, _labels(seen, _SIXTEEN)) / whole


def _centroids(seen: landmarks.Landmarks | None, clusters: int) -> np.ndarray:
    if seen is None:
        return np.empty(0)
    if len(seen.points) <= clusters:
        return np.sort(seen.points[:, 0])
    return seen.codebook(_labels(seen, clusters)).centroids[:, 0].astype(np.float64)


def _moments(values: np.ndarray) -> tuple[float, float, float]:
    """Returns mean, standard deviation and excess kurtosis, added up in float64."""
    squares = values.astype(np.float64)
    mean = float(squares.mean())
    squares -= mean
    squares *= squares
    variance = float(squares.mean())
    fourth = float(squares @ squares) / squares.size
    # The mean of equal values may be off by a rounding.
    varies = values.min() < values.max() and variance > 0
    return (mean, variance**0.5, fourth / variance**2 - 3) if varies else (mean, 0.0, 0.0)


def _written(path: pathlib.Path, content: bytes) -> pathlib.Path:
    with written_whole(path) as file:
        file.write(content)
    return path
