"""Mixed precision by search: each layer gets its own scheme, under one limit for the whole file."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfcompress import weights
from tfcompress.errors import InputError, require, unknown
from tfcompress.quantization.allocation import allocate, front, total
from tfcompress.report import quantization_report
from tfcompress.search.allocation import Allocation, Point, rules_for, same_schemes
from tfcompress.search.trials import Trial, Trials, require_accuracy
from tfcompress.tflite.latency import measure_latency, measure_ratios
from tfcompress.tflite.request import LAYER_SCHEMES

_OWNER = "mixed_precision"
_STORED = {"dynamic": "int8", "int16x8": "int8"}  # the kernel's type where it is not the scheme
_ATTEMPTS = 8


def mixed_precision(
    model: keras.Model,
    data: Any,
    schemes: Sequence[Any] = ("int8", "int4"),
    *,
    max_bytes: int | None = None,
    max_latency_ms: float | None = None,
    max_loss_increase: float | None = None,
    max_accuracy_drop: float | None = None,
    loss: Any = None,
    samples: Any = None,
    most: int = 1024,
    points: int = 8,
    **arguments: Any,
) -> Allocation:
    """Returns the best scheme for each layer under one limit, and the file; `model` stays.

    Layer by layer and scheme by scheme a real file is made in which this layer alone has the scheme
    and all others have the first of `schemes`; it runs on the LiteRT interpreter. That tells what
    each choice does to loss and bytes (and time). These numbers are taken to add up; an integer
    program finds the least loss within a cost. Its allocations along the whole front are then made
    and measured, so that what is chosen is a file that keeps the limit, not a sum that does.

    Args:
        data: (x, y) and the other forms of `tfc.sensitivity`; of x alone, the loss is the squared
            error of the outputs relative to the float model's.
        schemes: at least two of float32, float16, dynamic, int8, int16x8, int4; the most accurate
            first. One with options of `convert`'s rules is a mapping:
            {"int4": {"rounding": "adaround", "weight_ranges": "mse"}}.
        max_bytes: of the file: the least loss within it.
        max_latency_ms: one run's time in the interpreter, one thread: the least loss within it.
        max_loss_increase: over the float32 file's: the smallest file of the front within it.
        max_accuracy_drop: share of right predictions, less than the float32 file's, in [0, 1]: as
            before. Just one of the four limits is given.
        loss: as `compile` takes it; None: the one that the model is compiled with.
        samples: for the activations' ranges, as `convert` takes them; None: 200 of the data.
        most: rows of the data that every file is run on.
        points: of the front, at least 2.
        arguments: further ones of `convert`: `ranges`, `activations`, `target`; `search_ranges` is
            for the last file alone, made by `convert` with the rules found.

    Raises:
        InputError: limits that cannot be kept (the best that can be is named), unknown schemes,
            data that does not fit, a model without kernels.

    Source: Hubara et al. 2021, "Accurate post training quantization with small calibration sets",
    section 3.3 (the integer program); Cai and Vasconcelos 2020 for the setting.

    Example:

        found = tfc.mixed_precision(model, (x, y), max_bytes=60_000,
                                    loss="sparse_categorical_crossentropy")
        print(found)                                   # sensitivities, the front, what was chosen
        open("mixed.tflite", "wb").write(found.flatbuffer)
    """
    limits = {
        "max_bytes": max_bytes,
        "max_latency_ms": max_latency_ms,
        "max_loss_increase": max_loss_increase,
        "max_accuracy_drop": max_accuracy_drop,
    }
    limit, names, options = checked(schemes, limits)
    require(points >= 2, f"points of {_OWNER}", "must be at least 2", points=points)
    require(most >= 1, f"most of {_OWNER}", "must be at least 1", most=most)
    rule = "must be left out: each file has the rules that are its own"
    require("rules" not in arguments, f"rules of {_OWNER}", rule)
    rule = "must be left out, for time: give it to `convert` with the rules found"
    searched = arguments.get("search_ranges", False)
    require(not searched, f"search_ranges of {_OWNER}", rule, search_ranges=searched)
    paths = list(dict.fromkeys(kernel.layer_path for kernel in weights.kernels(model)))
    require(paths, f"Model '{model.name}'", "must have layers with kernels")
    trials = Trials(model, data, loss, samples, options, arguments, most)
    search = _Search(trials, paths, names, max_latency_ms is not None)
    reference = trials.in_float()
    if max_accuracy_drop is not None:
        require_accuracy(reference)
    found = search.front(points)
    if max_bytes is not None:
        chosen = search.within(search.bytes, max_bytes, "max_bytes", lambda p: p.size_bytes)
    elif max_latency_ms is not None:
        chosen = search.within(
            search.latency, max_latency_ms, "max_latency_ms", lambda p: p.latency_ms
        )
    else:
        chosen = _smallest(found, reference, limit, limits[limit] or 0.0)
    content = trials(chosen.schemes).flatbuffer
    _read_back(model, content, chosen, trials)
    same = dict.fromkeys(paths, "float32")
    return Allocation(
        chosen=chosen,
        flatbuffer=content,
        rules=rules_for(chosen.schemes, options),
        front=tuple(same_schemes([*found, chosen])),
        reference=Point(
            same, reference.size_bytes, reference.loss, reference.loss, reference.accuracy
        ),
        schemes=tuple(names),
        losses=search.table(lambda trial: trial.loss),
        size_bytes=search.table(lambda trial: trial.size_bytes),
        excluded=search.excluded,
    )


class _Search:
    """Measures every layer in every scheme, and finds allocations from that.

    losses, latency: (layers, schemes), how far these rise when the layer alone has the scheme.
    bytes: of its kernel in the scheme; what a file spends between layers of different schemes does
    not add up, and is found in the files.
    """

    def __init__(self, trials: Trials, paths: list[str], schemes: list[str], timed: bool):
        self._trials, self._paths, self._schemes, self._timed = trials, paths, schemes, timed
        self._base = trials(dict.fromkeys(paths, schemes[0]))
        shape = (len(paths), len(schemes))
        self._singles = [[self._single(path, scheme) for scheme in schemes] for path in paths]
        self.excluded = {
            path: reasons
            for path, row in zip(paths, self._singles, strict=True)
            if (
                reasons := {
                    s: t.shortfall for s, t in zip(schemes, row, strict=True) if t.shortfall
                }
            )
        }
        flat = [trial for row in self._singles for trial in row]
        allowed = np.array([not trial.shortfall for trial in flat]).reshape(shape)
        losses = np.array([trial.loss - self._base.loss for trial in flat]).reshape(shape)
        self.losses = np.where(allowed, losses, np.inf)
        sizes = [[_bits(s) * trials.weights(path) / 8 for s in schemes] for path in paths]
        self.bytes = np.array(sizes)
        self.latency = np.zeros(shape)
        if timed:
            self._base_ms = measure_latency(self._base.flatbuffer).median_ms
            files = list({id(t): t.flatbuffer for t in (self._base, *flat)}.values())
            ratios = dict(zip(map(id, files), measure_ratios(files), strict=True))
            rises = [ratios[id(trial.flatbuffer)] - 1 for trial in flat]
            self.latency = np.array(rises).reshape(shape) * self._base_ms

    def _single(self, path: str, scheme: str) -> Trial:
        return self._trials(dict.fromkeys(self._paths, self._schemes[0]) | {path: scheme})

    def table(self, of: Any) -> dict[str, dict[str, Any]]:
        """Returns by path and scheme what `of` says of the trials that are what they should be."""
        return {
            path: {s: of(t) for s, t in zip(self._schemes, row, strict=True) if not t.shortfall}
            for path, row in zip(self._paths, self._singles, strict=True)
        }

    def front(self, points: int) -> list[Point]:
        costs = self.latency if self._timed else self.bytes
        return [self._point(choice) for choice in front(self.losses, _shifted(costs), points)]

    def within(self, costs: np.ndarray, limit: float, name: str, of: Any) -> Point:
        """Returns the least loss whose file keeps the limit; the sum of its parts may be off."""
        shifted = _shifted(costs)
        first = np.zeros(len(self._paths), int)
        room = limit - of(self._point(first)) + float(total(shifted, first))
        tried = [self._point(np.full(len(self._paths), i)) for i in range(len(self._schemes))]
        for _ in range(_ATTEMPTS):
            try:
                choice = allocate(self.losses, shifted, room)
            except InputError:
                break
            tried.append(self._point(choice))
            if of(tried[-1]) <= limit:
                return tried[-1]
            room = min(float(total(shifted, choice)), room) - (of(tried[-1]) - limit)
        tried = [point for point in tried if math.isfinite(point.predicted_loss)]
        fitting = [point for point in tried if of(point) <= limit]
        if fitting:
            return min(fitting, key=lambda point: point.loss)
        reached = min(map(of, tried))
        raise InputError(
            f"{name} of {_OWNER} must be at least {reached:,.6g}, the least that these schemes "
            f"reach. Received: {name}={limit:,.6g}"
        )

    def _point(self, choice: np.ndarray) -> Point:
        names = [self._schemes[index] for index in choice]
        schemes = dict(zip(self._paths, names, strict=True))
        trial = self._trials(schemes)
        latency = None
        if self._timed:
            latency = measure_ratios([self._base.flatbuffer, trial.flatbuffer])[1] * self._base_ms
        predicted = self._base.loss + float(total(self.losses, choice))
        return Point(
            schemes, trial.size_bytes, predicted, trial.loss, trial.accuracy, latency_ms=latency
        )


def _bits(scheme: str) -> int:
    kind = _STORED.get(scheme, scheme)
    return int(kind.removeprefix("float").removeprefix("int"))


def _shifted(costs: np.ndarray) -> np.ndarray:
    """Returns the costs from 0 on in each layer."""
    return costs - costs.min(axis=1, keepdims=True)


def checked(
    schemes: Sequence[Any], limits: Mapping[str, Any]
) -> tuple[str, list[str], dict[str, Mapping[str, Any]]]:
    """Returns the limit that is given, the schemes' names, and by name their options."""
    return (_only(limits), *_schemes(schemes))


def _only(limits: Mapping[str, Any]) -> str:
    given = {name: value for name, value in limits.items() if value is not None}
    if len(given) != 1:
        raise InputError(
            f"{_OWNER} needs just one of {', '.join(limits)}. "
            f"Received: {', '.join(given) or 'none'}"
        )
    ((name, value),) = given.items()
    number = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
    require(number, f"{name} of {_OWNER}", "must be a number of at least 0", **{name: value})
    return name


def _schemes(schemes: Sequence[Any]) -> tuple[list[str], dict[str, Mapping[str, Any]]]:
    """Returns the names in their order, and the options by name."""
    parts = [{s: {}} if isinstance(s, str) else s for s in schemes]
    fits = all(isinstance(part, Mapping) and len(part) == 1 for part in parts)
    rule = "must be names, or mappings {name: options} with one name each"
    require(fits and not isinstance(schemes, str), f"schemes of {_OWNER}", rule, schemes=schemes)
    options = {name: value or {} for part in parts for name, value in part.items()}
    for name in options:
        if name not in LAYER_SCHEMES:
            raise unknown(f"scheme of {_OWNER}", name, LAYER_SCHEMES)
    distinct = len(options) == len(parts) >= 2
    require(distinct, f"schemes of {_OWNER}", "must be at least two, none twice", schemes=schemes)
    return list(options), options


def _smallest(found: Sequence[Point], reference: Trial, limit: str, value: float) -> Point:
    """Returns the smallest measured file that loses no more than the limit allows."""

    def lost(point: Point) -> float:
        if limit == "max_loss_increase":
            return point.loss - reference.loss
        return float(reference.accuracy or 0.0) - float(point.accuracy or 0.0)

    good = [point for point in found if lost(point) <= value]
    if not good:
        best = min(map(lost, found))
        raise InputError(
            f"{limit} of {_OWNER} must be at least {best:.4g}, the least of the front's files. "
            f"Received: {limit}={value:g}"
        )
    return min(good, key=lambda point: point.size_bytes)


def _read_back(model: keras.Model, content: bytes, chosen: Point, trials: Trials) -> None:
    """Refuses a file whose kernels, read back, are not what was chosen."""
    report = quantization_report(model, content, trials.x, most=1)
    for layer in report.layers:
        scheme = chosen.schemes.get(layer.path)
        if scheme is not None and layer.kernel_type not in ("", _STORED.get(scheme, scheme)):
            raise RuntimeError(
                f"Layer '{layer.path}' should be {scheme}, but the file holds {layer.kernel_type}: "
                "a defect of convert()."
            )
