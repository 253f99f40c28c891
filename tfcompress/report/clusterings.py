"""Clustering methods side by side on one model."""

import dataclasses
import inspect
import time
import zlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from matplotlib.figure import Figure

from tfcompress import clustering
from tfcompress.clustered import cluster, scale_axes
from tfcompress.errors import InputError, require, unknown
from tfcompress.quantization import granularity
from tfcompress.report import cluster_plots
from tfcompress.structured import evaluation, fold_batch_norm
from tfcompress.structured.fold import can_fold
from tfcompress.weights import Kernel, kernels

ALL = "all"
_SETTINGS = frozenset(inspect.signature(cluster).parameters) - {"model", "method", "clusters"}


@dataclasses.dataclass(frozen=True)
class ClusteringResult:
    """What a method made of a model.

    error: sum of squared errors over that of all weights, in [0, 1]. entropy_bits: per weight, of
    the values as independent symbols, over all kernels. deflated_bytes: of the kernels as float32,
    or as the codes of a grid.
    distinct_values: the most that one kernel has. accuracy: share of right classes, None without
    labels. seconds: of the clustering. failed: why the method made nothing, "" where it did.
    confusion: numbers of samples, int64 (true classes, classes that the model says), None without
    labels.
    """

    method: str
    error: float = float("nan")
    entropy_bits: float = float("nan")
    deflated_bytes: int = 0
    distinct_values: int = 0
    accuracy: float | None = None
    seconds: float = 0.0
    failed: str = ""
    confusion: np.ndarray | None = dataclasses.field(default=None, compare=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as plain values, fit for JSON."""
        confusion = None if self.confusion is None else self.confusion.tolist()
        return dataclasses.asdict(self) | {"confusion": confusion}


@dataclasses.dataclass(frozen=True)
class ClusteringComparison:
    """Methods side by side; see `compare_clusterings`. `str()` is a table, `plot()` a figure.

    `baseline` is the model as it is. `plot_confusion(method)` shows what a classifier says for
    which class, before and after.
    """

    baseline: ClusteringResult
    results: tuple[ClusteringResult, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as plain values, fit for JSON."""
        return {
            "baseline": self.baseline.to_dict(),
            "results": [result.to_dict() for result in self.results],
        }

    def __str__(self) -> str:
        wide = max(len(result.method) for result in (self.baseline, *self.results))
        head = f"{'method':{wide}}{'error':>10}{'bits':>7}{'deflated':>11}{'distinct':>10}"
        lines = [f"{head}{'accuracy':>10}{'seconds':>9}"]
        for one in (self.baseline, *self.results):
            if one.failed:
                lines.append(f"{one.method:{wide}}  {one.failed}")
                continue
            accuracy = "" if one.accuracy is None else f"{one.accuracy:.2%}"
            lines.append(
                f"{one.method:{wide}}{one.error:>10.5f}{one.entropy_bits:>7.2f}"
                f"{one.deflated_bytes:>11,}{one.distinct_values:>10,}{accuracy:>10}"
                f"{one.seconds:>9.2f}"
            )
        return "\n".join(lines)

    def plot(self) -> Figure:
        """Returns a figure: bars of error, deflated bytes, accuracy and seconds for each method."""
        done = [result for result in self.results if not result.failed]
        panels = {"error": "relative squared error", "deflated_bytes": "deflated bytes"}
        if self.baseline.accuracy is not None:
            panels["accuracy"] = "accuracy"
        panels["seconds"] = "seconds"
        figure = Figure(figsize=(3.0 * len(panels), 0.8 + 0.28 * len(done)), layout="constrained")
        rows = np.arange(len(done))
        for number, (field, title) in enumerate(panels.items(), 1):
            axes = figure.add_subplot(1, len(panels), number)
            axes.barh(rows, [getattr(result, field) for result in done], color="#0b6e99")
            axes.set_yticks(rows, [result.method for result in done] if number == 1 else [])
            axes.invert_yaxis()
            axes.set_xlabel(title)
            axes.spines[["top", "right"]].set_visible(False)
            if field == "accuracy":
                axes.axvline(self.baseline.accuracy or 0.0, color="black", linewidth=0.8)
        return figure

    def plot_confusion(self, method: str) -> Figure:
        """Returns a figure: confusion matrices before and after a method, and the change.

        Raises:
            InputError: a method that was not compared or has failed, a comparison without labels.
        """
        done = {result.method: result for result in self.results if not result.failed}
        if method not in done:
            raise unknown("method of the comparison", method, done)
        before, after = self.baseline.confusion, done[method].confusion
        if before is None or after is None:
            raise InputError("plot_confusion needs a comparison with `data`, (x, y).")
        return cluster_plots.confusion(before, after)


def compare_clusterings(
    model: keras.Model,
    methods: str | Sequence[Any] = ALL,
    clusters: int | str | None = None,
    data: Any = None,
    *,
    batch_size: int = 256,
    **settings: Any,
) -> ClusteringComparison:
    """Clusters a model by one method after the other and compares; `model` stays as it was.

    Args:
        methods: "all" of `tfcompress.clustering.METHODS`, or names, mappings or objects.
        clusters: how many, whatever the methods themselves say. None: as many as each says, which
            is 16 without a word, or as many as `max_bytes` or `max_error` allow.
        data: (x, y) with class numbers y, to measure the accuracy before any training on; None:
            only the weights are looked at.
        batch_size: rows of a batch of `data`.
        settings: further arguments of `tfc.cluster`: block, levels, per, rules, ... With `grid` the
            model is compared as it is on that grid, BatchNorm folded, and sizes are those of codes.

    A method that cannot do what was asked (a block, a kernel too large for it) stays in the table
    with its reason; only where none can, that is an error.

    Raises:
        InputError: an unknown method or setting, data that does not fit, no method that works.

        found = tfc.compare_clusterings(model, clusters=16, data=(x_test, y_test))
        print(found)
        found.plot_confusion("kmeans").savefig("confusion.png")

    `tfcompress.report.cluster_plots` draws one kernel as it was and as a clustering made it.
    """
    chosen = clustering.METHODS.names() if isinstance(methods, str) and methods == ALL else methods
    require(not isinstance(chosen, str), "methods of compare_clusterings", "must be 'all' or names")
    created = [clustering.METHODS.create(method) for method in chosen]
    require(created, "methods of compare_clusterings", "must not be empty")
    require(kernels(model), f"Model '{model.name}'", "must have a kernel for compare_clusterings")
    for word in settings:
        if word not in _SETTINGS:
            raise unknown("setting of compare_clusterings", word, _SETTINGS)
    grid = settings.get("grid")
    folded = fold_batch_norm(model) if grid and can_fold(model) else model
    whole = _on_grid(folded) if grid else model
    name = f"(as {grid})" if grid else "(as it is)"
    baseline = _measured(name, folded, whole, 0.0, data, batch_size, grid)
    results = []
    for name, method in zip(_names(created), created, strict=True):
        started = time.perf_counter()
        try:
            small = cluster(model, method, clusters, **settings)
        except InputError as error:
            results.append(ClusteringResult(name, failed=str(error)))
            continue
        seconds = time.perf_counter() - started
        results.append(_measured(name, folded, small, seconds, data, batch_size, grid))
    if all(result.failed for result in results):
        raise InputError(results[0].failed)
    return ClusteringComparison(baseline, tuple(results))


def _names(methods: Sequence[Any]) -> list[str]:
    """Returns the methods' names, numbered where one comes again."""
    found: list[str] = []
    for method in methods:
        ((name, _),) = clustering.METHODS.describe(method).items()
        taken = sum(other.split()[0] == name for other in found)
        found.append(f"{name} {taken + 1}" if taken else name)
    return found


def _measured(
    name: str,
    model: keras.Model,
    small: keras.Model,
    seconds: float,
    data: Any,
    batch_size: int,
    grid: str | None,
) -> ClusteringResult:
    before = [kernel.value() for kernel in kernels(model)]
    after = [kernel.value() for kernel in kernels(small)]
    stored = _codes(small) if grid else [w.astype("<f4") for w in after]
    power = sum(float((w.astype(np.float64) ** 2).sum()) for w in before)
    error = sum(
        float(((w.astype(np.float64) - v) ** 2).sum()) for w, v in zip(before, after, strict=True)
    )
    counts = [np.unique(w, return_counts=True)[1] for w in stored]
    bits = -sum(float((count * np.log2(count / count.sum())).sum()) for count in counts)
    confusion = None if data is None else _confusion(small, data, batch_size)
    return ClusteringResult(
        method=name,
        error=error / max(power, 1e-300),
        entropy_bits=bits / sum(w.size for w in after) + 0.0,
        deflated_bytes=sum(len(zlib.compress(w.tobytes(), 9)) for w in stored),
        distinct_values=max(len(count) for count in counts),
        accuracy=None if confusion is None else float(np.trace(confusion) / confusion.sum()),
        seconds=seconds,
        confusion=confusion,
    )


def _on_grid(model: keras.Model) -> keras.Model:
    """Returns a copy of the model whose kernels are rounded as its int8 file's are."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    for kernel, grid in _grids(copy):
        if grid is not None:
            w = grid.dequantize(granularity.quantize(kernel.value(), grid))
            kernel.variable.assign(w)
    return copy


def _codes(model: keras.Model) -> list[np.ndarray]:
    """Returns the kernels as int8 files hold them; float32 what such files do not hold."""
    return [
        kernel.value() if grid is None else granularity.quantize(kernel.value(), grid).astype("i1")
        for kernel, grid in _grids(model)
    ]


def _grids(model: keras.Model) -> list[tuple[Kernel, Any]]:
    """Returns each kernel with the grid that it has in an int8 file, None if it has none there."""
    found = kernels(model)
    pairs = zip(found, scale_axes(model, found).values(), strict=True)
    return [(k, None if axes is None else granularity.fit(k.value(), axes)) for k, axes in pairs]


def _confusion(model: keras.Model, data: Any, batch_size: int) -> np.ndarray:
    """Returns numbers of samples, int64 (true classes, classes that the model says)."""
    total: Any = 0
    for x, y in evaluation.batches(data, batch_size):
        require(y is not None, "data of compare_clusterings", "must be (x, y)")
        evaluation.inputs_in_order(model, x)  # refuses what does not fit
        outputs = np.asarray(model(x, training=False))
        labels = np.asarray(y).astype(np.int64)
        rule = "has one output, not one for each class: compare it without data"
        require(outputs.shape[-1] > 1, f"Model '{model.name}'", rule, outputs=outputs.shape)
        fits = outputs.ndim == 2 and labels.size == len(outputs)
        rule = "must hold one class number for each row of outputs"
        require(fits, "y of compare_clusterings", rule, outputs=outputs.shape, y=labels.shape)
        labels, classes = labels.reshape(-1), outputs.shape[1]
        known = labels.min() >= 0 and labels.max() < classes
        rule = f"must hold class numbers in [0, {classes})"
        given = {"lowest": int(labels.min()), "highest": int(labels.max())}
        require(known, "y of compare_clusterings", rule, **given)
        cells = np.bincount(labels * classes + outputs.argmax(axis=1), minlength=classes**2)
        total = total + cells.reshape(classes, classes)
    return total
