"""Which layer of a quantized `.tflite` file is to blame: its error beside the Keras model's."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from matplotlib.figure import Figure

from tfcompress import graph, tflite, wrappers
from tfcompress.data.samples import to_arrays
from tfcompress.errors import InputError, require
from tfcompress.report import layer_names, plots
from tfcompress.tflite.compare import arrange
from tfcompress.tflite.converter import input_specs
from tfcompress.tflite.differences import Difference, Pair, StepDifference, Values, bounds
from tfcompress.tflite.flatbuffer import Flatbuffer


@dataclasses.dataclass(frozen=True)
class LayerError:
    """One operator of the file beside the Keras layers that it computes.

    path: the layer's, that with the kernel where there are several; layers: the paths of all.
    operator: "number NAME" in the file.
    snr_db: of its output in the whole file, signal over accumulated error, in decibels (each 6 dB
        halve the error); infinite: no error.
    own_snr_db: of its output where the layer reads the float model's values: its own error alone,
        of kernel, bias and output; None where the file's operator reads something else.
    dtype, scale, zero_point: of its output as stored; range: (low, high) that these can express,
        None for floats. seen: the smallest and largest value that the float model puts out.
    clipped: share in [0, 1] of the float model's values outside of that range.
    equal: share in [0, 1] of output values that are the model's, to half a step of the scale.
    kernel_type: as stored, "" without one. kernel_snr_db: of the kernel, None without one.
    bytes: of kernel, bias and other constants.
    """

    path: str
    layers: tuple[str, ...]
    operator: str
    snr_db: float
    own_snr_db: float | None
    dtype: str
    scale: float
    zero_point: int
    range: tuple[float, float] | None
    seen: tuple[float, float]
    clipped: float
    equal: float
    kernel_type: str
    kernel_snr_db: float | None
    bytes: int

    @property
    def blame_db(self) -> float:
        """Its own ratio where it is known, else the accumulated one: the lower, the worse."""
        return self.snr_db if self.own_snr_db is None else self.own_snr_db


@dataclasses.dataclass(frozen=True)
class QuantizationReport:
    """The error of each layer of a quantized file; see `quantization_report`.

    layers: the worst first, by its own error. order: the operators' labels in the file's order.
    unmatched: operators of the file that stand for nothing in the float model, and why.
    samples: how many were run. simulation: whether the reference was a `quantize_aware` model's
    rounding, not a float model. `str()` is a table, `to_dict()` plain values, `plot()` a figure.
    """

    layers: tuple[LayerError, ...]
    order: tuple[str, ...]
    unmatched: dict[str, str]
    samples: int
    simulation: bool

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as JSON takes it; a ratio that is infinite is None, with `equal` 1."""
        return _plain(dataclasses.asdict(self))

    def __str__(self) -> str:
        what = "the simulation" if self.simulation else "the float model"
        wide = max(len("layer"), *(len(layer.path) for layer in self.layers))
        lines = [
            f"error against {what} on {self.samples} samples, in dB (6 dB: half the error); "
            "worst of its own first",
            f"{'layer':{wide}}  {'operator':<22}{'own':>7}{'whole':>8}{'kernel':>9}"
            f"{'type':>9}{'output':>9}{'range':>25}{'clipped':>9}{'equal':>8}{'bytes':>10}",
        ]
        lines += [f"{layer.path:{wide}}  {_row(layer)}" for layer in self.layers]
        lines += [f"not compared: {label}: {why}" for label, why in self.unmatched.items()]
        return "\n".join(lines)

    def plot(self) -> Figure:
        """Returns a figure: own and accumulated signal-to-noise ratio, in the file's order."""
        by_label = {layer.operator: layer for layer in self.layers}
        ordered = [by_label[label] for label in self.order]
        figure, axes = plots.new_figure(9, 0.9 + 0.3 * len(ordered))
        rows = np.arange(len(ordered))
        for offset, name, color, label in (
            (-0.2, "own_snr_db", plots.AFTER, "the layer's own error"),
            (0.2, "snr_db", plots.BEFORE, "error of the file up to there"),
        ):
            values = [getattr(layer, name) for layer in ordered]
            shown = [v if v is not None and math.isfinite(v) else math.nan for v in values]
            axes.barh(rows + offset, shown, 0.4, color=color, label=label)
        plots.name_rows(axes, [f"{layer.path} ({layer.operator})" for layer in ordered])
        axes.set_xlabel("signal to noise, dB (no bar: no error)")
        plots.legend(figure, axes)
        return figure


def quantization_report(
    model: keras.Model, flatbuffer: Flatbuffer, samples: Any, most: int = 64
) -> QuantizationReport:
    """Returns, layer by layer, how far a quantized `.tflite` file is from its Keras model.

    The file runs on the LiteRT interpreter, sample by sample, and its inner tensors are read. The
    float model is converted anew, and the operators of both are matched by what they compute: kind,
    sizes, the tensors that they read, the kernel. So the file needs no names, and may be of any
    scheme: float16, dynamic, int8, int16x8, 4 bits, mixed. What the file alone has is listed in
    `unmatched`. Then every operator runs once more by itself on the float model's values: its own
    error, without that of the layers before.

    Args:
        model: the Keras model that the file was made of. One made by `quantize_aware` is compared
            as what it is, a simulation of the file: `equal` is then the share of values on which
            file and simulation agree.
        flatbuffer: the file's content or its path.
        samples: inputs, as `convert` takes them; the first `most` of them are run.

    Raises:
        InputError: a file that cannot be read or run, that takes other inputs, or of which no
            kernel stands for one of the model's; samples that do not fit; what `convert` refuses.

    Example:

        report = tfc.quantization_report(model, flatbuffer, x_test[:64])
        print(report)                                  # worst layer first
        report.plot().savefig("errors.png")
    """
    whole = isinstance(most, int) and most >= 1
    require(whole, "most of quantization_report", "must be a whole number of at least 1", most=most)
    require(isinstance(model, keras.Model), "A model", "must be a Keras 3 model", model=model)
    rule = "must be given: the file and the model run on them"
    require(samples is not None, "samples of quantization_report", rule)
    simulation = wrappers.is_quantize_aware(model)
    plain = wrappers.unrounded(model) if simulation else model
    specs = input_specs(plain, samples)
    arrays = [a[:most] for a in to_arrays(samples, specs, [spec.name for spec in specs])]
    pair = Pair(tflite.convert(plain, "float32", arrays, keep_names=True), flatbuffer)
    first = [array[:1] for array in arrays]
    places = _places(model, plain, pair, first)
    truth = _simulation(model, pair, places) if simulation else None
    found = pair.differences(_rows(arrays), truth)
    _check_kernels(model, pair, found)
    layers = [_layer(difference, places) for difference in found]
    unmatched = {s.label: "the float model has no such operator there" for s in pair.unmatched}
    compared = {difference.step.label for difference in found} | set(unmatched)
    unmatched |= {
        step.label: "its output cannot be read, or is not one of the simulation's tensors"
        for step in pair.found_steps
        if step.label not in compared
    }
    return QuantizationReport(
        layers=tuple(sorted(layers, key=lambda layer: layer.blame_db)),
        order=tuple(layer.operator for layer in layers),
        unmatched=unmatched,
        samples=len(arrays[0]),
        simulation=simulation,
    )


def _places(
    model: keras.Model, plain: keras.Model, pair: Pair, sample: Sequence[np.ndarray]
) -> dict[int, layer_names.Place]:
    """Returns the Keras layers of each step; of a model without a graph, nothing."""
    try:
        flat = graph.exported(plain)
    except InputError:
        return {}
    # A quantize_aware model is flat: its layers' names are their paths.
    paths = {o.name: o.name for o in flat.operations} if plain is not model else {}
    paths = paths or layer_names.flat_paths(model, flat)
    values = pair.reference_values(sample)
    return layer_names.by_values(flat, paths, pair.steps, sample, values)


def _simulation(
    model: keras.Model, pair: Pair, places: dict[int, layer_names.Place]
) -> Callable[[Sequence[np.ndarray]], Values]:
    """Returns what gives the values of the tensors that a quantize_aware model simulates."""
    tensors = wrappers.simulated(model)
    known = {
        step.outputs[0]: tensors[place.operation.name]
        for step in pair.steps
        if (place := places.get(step.number)) and place.operation is not None
    }
    inside = keras.Model(model.inputs, list(known.values()))

    def values(sample: Sequence[np.ndarray]) -> Values:
        outputs = keras.tree.flatten(inside(arrange(inside, sample), training=False))
        arrays = map(keras.ops.convert_to_numpy, outputs)
        return dict(zip(pair.inputs, sample, strict=True)) | dict(zip(known, arrays, strict=True))

    return values


def _rows(arrays: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
    for row in range(len(arrays[0])):
        yield [array[row : row + 1] for array in arrays]


def _check_kernels(model: keras.Model, pair: Pair, found: Sequence[StepDifference]) -> None:
    with_kernel = any(step.kernel is not None for step in pair.steps)
    matched = any(d.reference.kernel is not None for d in found)
    require(
        found and (matched or not with_kernel),
        "The flatbuffer",
        f"must be made of model '{model.name}': none of its kernels has the shape and the place of "
        "one of the model's",
    )


def _layer(difference: StepDifference, places: dict[int, layer_names.Place]) -> LayerError:
    step, whole, own = difference.step, difference.whole, difference.own
    place = places.get(difference.reference.number)
    scale, zero_point = difference.detail["quantization"]
    low, high = bounds(difference.detail)
    kernel = Difference()
    if step.kernel is not None and difference.reference.kernel is not None:
        kernel.add(
            difference.reference.kernel, step.kernel, {"quantization": (0, 0), "dtype": float}
        )
    return LayerError(
        path=place.path if place else step.label,
        layers=place.layers if place else (),
        operator=step.label,
        snr_db=whole.snr_db,
        own_snr_db=own.snr_db if own and own.count else None,
        dtype=np.dtype(difference.detail["dtype"]).name,
        scale=float(scale),
        zero_point=int(zero_point),
        range=(low, high) if math.isfinite(low) else None,
        seen=(float(whole.low), float(whole.high)),
        clipped=whole.clipped / whole.count,
        equal=whole.equal / whole.count,
        kernel_type=step.kernel_type,
        kernel_snr_db=kernel.snr_db if kernel.count else None,
        bytes=step.bytes,
    )


def _row(layer: LayerError) -> str:
    span = "" if layer.range is None else f"{layer.range[0]:.4g} .. {layer.range[1]:.4g}"
    return (
        f"{layer.operator:<22}{_db(layer.own_snr_db):>7}{_db(layer.snr_db):>8}"
        f"{_db(layer.kernel_snr_db):>9}{layer.kernel_type:>9}{layer.dtype:>9}{span:>25}"
        f"{layer.clipped:>9.2%}{layer.equal:>8.1%}{layer.bytes:>10,}"
    )


def _db(ratio: float | None) -> str:
    if ratio is None:
        return ""
    return "exact" if ratio == math.inf else f"{ratio:.1f}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
