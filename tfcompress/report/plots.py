"""The pictures of a report, as PNG bytes; matplotlib without a display or global state."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BEFORE, AFTER, ACCENT, MUTED = "#9aa5b1", "#0b6e99", "#c4511a", "#d8dee4"
_BINS = 80
_MOST_STEMS = 256  # up to here each shared value is drawn, beyond it a histogram
_DPI = 100


def weights(path: str, before: np.ndarray | None, after: np.ndarray | None) -> bytes:
    """Draws one kernel's values before and after, arrays of any shape, counts on a log axis.

    Weights that share few values become one line per value, as high as the weights that have it;
    zeros are left out of the drawing and told in the title.
    """
    figure, axes = new_figure(4.2, 2.5)
    old, new = _drawable(before), _drawable(after)
    bins = _bins(np.concatenate([old, new]))
    if old.size:
        axes.hist(old, bins, color=BEFORE, label="before")
    if new.size:
        _draw_after(axes, new, bins)
    if old.size or new.size:
        axes.set_yscale("log")
        axes.legend(frameon=False, fontsize=7)
    axes.set_xlabel("value of the weight")
    axes.set_ylabel("weights")
    axes.set_title(_weights_title(path, after), fontsize=8)
    return png(figure)


def training(stages: Sequence[Mapping[str, Any]]) -> bytes | None:
    """Draws accuracy and sparsity over the steps of all stages, one after the other.

    Steps are counted from the start of each stage; if a stage does not tell its steps, the axis
    counts epochs. Returns None where no stage has a history.
    """
    trained = [stage for stage in stages if _epochs(stage)]
    if not trained:
        return None
    by_steps = all(_epochs(stage) == len(_series(stage, "step")) for stage in trained)
    figure, axes = new_figure(9, 3.2)
    right = axes.twinx()
    right.spines["top"].set_visible(False)
    start = 0.0
    for stage in trained:
        x = start + (_series(stage, "step") if by_steps else np.arange(1, _epochs(stage) + 1))
        _draw_series(axes, x, stage, "accuracy", color=BEFORE, label="training accuracy")
        _draw_series(axes, x, stage, "val_accuracy", color=AFTER, label="validation accuracy")
        _draw_series(right, x, stage, "sparsity", color=ACCENT, label="sparsity", linestyle="--")
        axes.axvline(start, color=MUTED, zorder=0)
        name = plain_text(stage.get("name", ""))
        axes.text(start, 1.01, f" {name}", transform=axes.get_xaxis_transform(), fontsize=8)
        start = float(x[-1])
    axes.set_xlabel("step" if by_steps else "epoch")
    axes.set_ylabel("accuracy")
    right.set_ylabel("sparsity", color=ACCENT)
    right.set_ylim(0, 1)
    legend(figure, axes, right)
    return png(figure)


def kernel_bytes(measures: Mapping[str, Any] | None) -> bytes | None:
    """Draws the bytes of each kernel: as float32, deflated, and entropy coded.

    `measures` is `ModelMeasures.to_dict()`; None where there are no kernels.
    """
    kernels = (measures or {}).get("kernels") or []
    if not kernels:
        return None
    bars = {"dense_bytes": MUTED, "deflated_bytes": AFTER, "entropy_bytes": ACCENT}
    labels = ("float32", "deflated", "entropy coded")
    figure, axes = new_figure(9, 0.9 + 0.45 * len(kernels))
    rows = np.arange(len(kernels))
    for offset, ((form, color), label) in enumerate(zip(bars.items(), labels, strict=True)):
        sizes = [_number(kernel.get("storage", {}).get(form)) for kernel in kernels]
        axes.barh(rows + 0.27 * (offset - 1), sizes, 0.27, color=color, label=label)
    name_rows(axes, [str(kernel.get("path", "")) for kernel in kernels])
    axes.set_xlabel("bytes of the kernel")
    legend(figure, axes)
    return png(figure)


def file_bytes(audit: Mapping[str, Any] | None) -> bytes | None:
    """Draws the bytes of each weight tensor in the `.tflite`, the largest 40 of them.

    `audit` is `Audit.to_dict()`; None where it lists no weights.
    """
    tensors = [tensor for tensor in (audit or {}).get("weights") or [] if tensor.get("bytes")]
    if not tensors:
        return None
    tensors = sorted(tensors, key=lambda tensor: -tensor["bytes"])[:40]
    figure, axes = new_figure(9, 0.9 + 0.25 * len(tensors))
    axes.barh(np.arange(len(tensors)), [tensor["bytes"] for tensor in tensors], color=AFTER)
    shapes = [" x ".join(map(str, tensor.get("shape") or [])) for tensor in tensors]
    dtypes = [str(tensor.get("dtype", "")).lower() for tensor in tensors]
    names = [str(tensor.get("name") or "") for tensor in tensors]
    name_rows(axes, [" ".join(t) for t in zip(names, dtypes, shapes, strict=True)])
    axes.set_xlabel("bytes in the file")
    return png(figure)


def operator_times(latency: Mapping[str, Any]) -> bytes | None:
    """Draws the estimated time of each operator of one file, in the order they run.

    `latency` is `Latency.to_dict()`; None where it lists no operators.
    """
    operators = latency.get("operators") or []
    if not any(operator.get("median_ms") is not None for operator in operators):
        return None
    figure, axes = new_figure(9, 0.9 + 0.25 * len(operators))
    times = [_number(operator.get("median_ms")) for operator in operators]
    colors = [AFTER if operator.get("delegated") else ACCENT for operator in operators]
    axes.barh(np.arange(len(operators)), times, color=colors)
    name_rows(axes, [str(operator.get("name", "")) for operator in operators])
    axes.set_xlabel("milliseconds, estimated (blue: run by XNNPACK, orange: not)")
    return png(figure)


def _draw_after(axes: Axes, values: np.ndarray, bins: list[float]) -> None:
    distinct, counts = np.unique(values, return_counts=True)
    if distinct.size <= _MOST_STEMS:
        axes.vlines(distinct, 0.5, counts, color=AFTER, linewidth=1.5, label="after")
    else:
        axes.hist(values, bins, color=AFTER, alpha=0.7, label="after")


def _drawable(values: np.ndarray | None) -> np.ndarray:
    """Returns the finite values other than zero, in one row."""
    if values is None:
        return np.zeros(0, np.float32)
    return values[np.isfinite(values) & (values != 0)]


def _bins(values: np.ndarray) -> list[float]:
    low, high = (values.min(), values.max()) if values.size else (-1, 1)
    return np.linspace(low, high if high > low else low + 1e-6, _BINS + 1).tolist()


def _weights_title(path: str, after: np.ndarray | None) -> str:
    if after is None or not after.size:
        return plain_text(path)
    zeros = 100 * (1 - np.count_nonzero(after) / after.size)
    distinct = np.unique(after[after != 0]).size
    return f"{plain_text(path)}\n{zeros:.1f} % zeros, {distinct:,} distinct other values"


def _epochs(stage: Mapping[str, Any]) -> int:
    history = stage.get("history") or {}
    return max((len(values) for values in history.values()), default=0)


def _series(stage: Mapping[str, Any], key: str) -> np.ndarray:
    return np.array([_number(v) for v in (stage.get("history") or {}).get(key) or []], float)


def _draw_series(axes: Axes, x: np.ndarray, stage: Mapping[str, Any], key: str, **how: Any) -> None:
    values = _series(stage, key)
    if values.size:
        axes.plot(x[-values.size :], values, marker=".", linewidth=1.2, **how)


def legend(figure: Figure, *all_axes: Axes) -> None:
    """Names each series once, below the drawing, where it covers nothing."""
    found: dict[str, Any] = {}
    for axes in all_axes:
        handles, labels = axes.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    if found:
        how: dict[str, Any] = {"loc": "outside lower center", "ncols": len(found)}
        figure.legend(list(found.values()), list(found), frameon=False, fontsize=8, **how)


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    shown = [plain_text(name if len(name) <= 48 else f"…{name[-47:]}") for name in names]
    axes.set_yticks(np.arange(len(names)), shown, fontsize=7)
    axes.invert_yaxis()


def plain_text(text: Any) -> str:
    """A dollar sign would start matplotlib's mathematics."""
    return str(text).replace("$", r"\$")


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    return figure, axes


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
