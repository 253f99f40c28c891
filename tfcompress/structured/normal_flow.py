"""Means and variances of what flows through a model, from what its BatchNorms say, without data.

A BatchNorm says of each channel that it has mean beta and deviation |gamma|; taken as normal, its
mean behind an activation follows (Nagel et al. 2019, appendix C). Sums of tensors, and outputs of
layers without a BatchNorm, are taken as sums of independent values.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from scipy.special import ndtr

from tfcompress import graph
from tfcompress.errors import require
from tfcompress.structured.bias_errors import Layers, MeanError, bias_axis, has_bias
from tfcompress.structured.fold import normalized
from tfcompress.structured.layers.elementwise import ELEMENTWISE

layers = keras.layers
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(64)


@dataclasses.dataclass(frozen=True, eq=False)
class Normal:
    """A tensor's mean and variance at each place: float64 arrays of its shape, batch size 1."""

    mean: np.ndarray
    variance: np.ndarray


@dataclasses.dataclass(frozen=True)
class Unknown:
    """A tensor of whose mean nothing is known, for a reason."""

    reason: str


@dataclasses.dataclass(frozen=True, eq=False)
class Both:
    """A tensor in the model, and in the one with quantized weights and corrected biases."""

    exact: Normal
    moved: Normal


Flowing = Both | Unknown


def by_statistics(
    run: Layers,
    arrays: Sequence[np.ndarray] | None,
    known: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> tuple[dict[str, MeanError], dict[str, str]]:
    """Returns the mean errors by layer, and for other layers with kernels the reason.

    `arrays`: the inputs' samples, of which mean and variance are taken, or None. `known`: by layer
    the mean and the deviation of its channels before the activation. A layer's error is the change
    of what it makes of its inputs' means, at the border as inside, averaged over positions.
    """
    norms = any(isinstance(layer, layers.BatchNormalization) for layer in run.flat.layers)
    rule = (
        "must have BatchNorm layers, or come straight from fold_batch_norm or equalize of one that "
        'has, for method="analytic"; else take method="empirical"'
    )
    require(norms or known, f"Model '{run.flat.name}'", rule)
    errors: dict[str, MeanError] = {}
    reasons: dict[str, str] = {}

    def call(node, path, args, kwargs):
        operation = node.operation
        given = [x for x in keras.tree.flatten((args, kwargs)) if isinstance(x, Both | Unknown)]
        unknown = next((x for x in given if isinstance(x, Unknown)), None)
        reason = run.reason(operation)
        if reason == "" and unknown:
            reason = f"the mean of its inputs is not known: {unknown.reason}"
        if reason:
            reasons[operation.name] = reason
        if has_bias(operation):
            found = [_layer(run, node, args, kwargs, unknown, known, errors)]
        elif type(operation) is layers.BatchNormalization and _whole(node):
            axis = operation.axis if isinstance(operation.axis, int) else operation.axis[0]
            normal = _channels(*normalized(operation), _whole(node), axis)
            found = [Both(normal, normal)]
        elif unknown:
            found = [unknown] * len(node.outputs)
        else:
            sides = (_behind(run, node, *_side(args, kwargs, side)) for side in ("exact", "moved"))
            found = [
                Both(a, b) if isinstance(a, Normal) and isinstance(b, Normal) else _unknown(node)
                for a, b in zip(*sides, strict=True)
            ]
        return found[0] if len(found) == 1 else found

    graph.interpret(run.flat, _inputs(run.flat, arrays), call)
    for name in errors:
        reasons.pop(name, None)
    return errors, reasons


def _inputs(flat: keras.Model, arrays: Sequence[np.ndarray] | None) -> Any:
    structure = graph.inputs_of(flat)
    found: list[Flowing] = []
    for number, tensor in enumerate(keras.tree.flatten(structure)):
        if arrays is None:
            found.append(Unknown(f"input '{tensor.name}' has no samples"))
        elif not keras.backend.is_float_dtype(tensor.dtype):
            found.append(Unknown(f"input '{tensor.name}' holds indices"))
        else:
            array = np.asarray(arrays[number], np.float64)
            normal = Normal(array.mean(0, keepdims=True), array.var(0, keepdims=True))
            found.append(Both(normal, normal))
    return keras.tree.pack_sequence_as(structure, found)


def _side(args: Any, kwargs: Any, side: str) -> Any:
    return keras.tree.map_structure(
        lambda x: getattr(x, side) if isinstance(x, Both) else x, (args, kwargs)
    )


def _unknown(node: Any) -> Unknown:
    return Unknown(f"{type(node.operation).__name__} '{node.operation.name}' does not tell it")


def _layer(
    run: Layers,
    node: Any,
    args: Any,
    kwargs: Any,
    unknown: Unknown | None,
    known: Mapping[str, tuple[np.ndarray, np.ndarray]],
    errors: dict[str, MeanError],
) -> Flowing:
    """Returns the outputs of a layer with a kernel; its first call tells the error."""
    layer, size = node.operation, _whole(node)
    axis = bias_axis(layer, len(node.outputs[0].shape))
    told = _channels(*known[layer.name], size, axis) if layer.name in known and size else None
    if layer.name in known and not size:
        return Unknown(f"{type(layer).__name__} '{layer.name}' leaves sizes of its outputs open")
    if unknown:
        both: Flowing = Both(told, told) if told else unknown
    else:
        both = _both(run, layer, _side(args, kwargs, "exact"), _side(args, kwargs, "moved"), told)
        if run.reason(layer) == "":
            both = _corrected(layer, both, axis, errors)
    function = run.activation(layer)
    if function is None or isinstance(both, Unknown):
        return both
    exact, moved = _activated(function, both.exact), _activated(function, both.moved)
    return Both(exact, moved) if exact and moved else _unknown(node)


def _both(run: Layers, layer: Any, own: Any, other: Any, told: Normal | None) -> Both:
    """Returns the outputs before the activation, the bias not corrected yet.

    Rounding changes their variance, too, by as much as it would if the inputs were independent;
    that moves means behind the activation.
    """
    mean, moved = (
        _numpy(function(layer, *_part(given, "mean")))
        for function, given in ((run.own, own), (run.other, other))
    )
    variance, other_variance = (
        _variance(run, layer, given, moved) for given, moved in ((own, False), (other, True))
    )
    exact = told or Normal(mean, variance)
    growth = np.divide(other_variance, variance, out=np.ones_like(variance), where=variance > 0)
    return Both(exact, Normal(exact.mean + moved - mean, exact.variance * growth))


def _corrected(layer: Any, both: Both, axis: int, errors: dict[str, MeanError]) -> Both:
    exact, moved = both.exact, both.moved
    if layer.name not in errors:
        others = tuple(i for i in range(exact.mean.ndim) if i != axis)
        size = float(np.sqrt((exact.mean**2 + exact.variance).mean()))
        errors[layer.name] = MeanError((exact.mean - moved.mean).mean(others), size)
    sizes = np.ones(exact.mean.ndim, int)
    sizes[axis] = -1
    return Both(exact, Normal(moved.mean + errors[layer.name].shift.reshape(sizes), moved.variance))


def _behind(run: Layers, node: Any, args: Any, kwargs: Any) -> list[Normal | None]:
    """Returns what is known of the outputs of a node that has no kernel, of one of the models."""
    operation, kind = node.operation, type(node.operation)
    name = kind.__name__
    flat = keras.tree.flatten((args, kwargs))
    given = [x for x in flat if isinstance(x, Normal)]
    if (kind in _BENDING or name in _BENDING_OPERATIONS) and len(given) == 1:
        return [_activated(operation, given[0])]
    if graph.is_identity(operation) or kind in _LINEAR or name in _LINEAR_OPERATIONS:
        means, variances = (
            keras.tree.flatten(run.own(operation, *_part((args, kwargs), part)))
            for part in ("mean", "variance")
        )
        return [Normal(_numpy(m), _numpy(v)) for m, v in zip(means, variances, strict=True)]
    if name in _SUMS and len(given) == len(flat):
        mean = _numpy(run.own(operation, *_part((args, kwargs), "mean")))
        return [Normal(mean, _SUMS[name]([x.variance for x in given]))]
    if name == "Multiply" and len(given) == len(flat) == 2:
        return [_product(*given)]
    return [None] * len(node.outputs)


def _whole(node: Any) -> tuple[int, ...] | None:
    """Returns the shape of a node's output with batch size 1; None if another size is open."""
    shape = tuple(node.outputs[0].shape)
    return None if None in shape[1:] else (1, *shape[1:])


def _channels(mean: np.ndarray, deviation: np.ndarray, shape: Any, axis: int) -> Normal:
    sizes = np.ones(len(shape), int)
    sizes[axis] = -1
    return Normal(
        *(np.broadcast_to(a.reshape(sizes), shape).astype(float) for a in (mean, deviation**2))
    )


def _variance(run: Layers, layer: Any, given: Any, moved: bool) -> np.ndarray:
    """Returns the variance of a layer's outputs, its inputs being independent."""
    squared = {
        id(v): tf.square(run.value(v, moved)) if id(v) in run.kernels else tf.zeros_like(v)
        for v in layer.variables
    }
    args, kwargs = _part(given, "variance")
    return _numpy(run.run(layer, args, kwargs, squared))


def _part(given: Any, part: str) -> Any:
    """Returns the arguments with each tensor's means or variances in its place, float32."""
    return keras.tree.map_structure(
        lambda x: tf.cast(getattr(x, part), tf.float32) if isinstance(x, Normal) else x, given
    )


def _numpy(x: Any) -> np.ndarray:
    return np.asarray(x, np.float64)


def _product(a: Normal, b: Normal) -> Normal:
    variance = a.variance * b.variance + a.variance * b.mean**2 + b.variance * a.mean**2
    return Normal(a.mean * b.mean, variance)


def _activated(function: Any, x: Normal) -> Normal | None:
    """Returns the moments behind a function of normal variables; None if it mixes them."""
    kernel = function.activation if type(function) is layers.Activation else function
    name = type(function).__name__
    if isinstance(kernel, layers.ReLU) and not (kernel.threshold or kernel.negative_slope):
        return clipped(x, 0.0, np.inf if kernel.max_value is None else float(kernel.max_value))
    if kernel is keras.activations.relu or name == "Relu":
        return clipped(x, 0.0, np.inf)
    if kernel is keras.activations.relu6 or name == "Relu6":
        return clipped(x, 0.0, 6.0)
    bending = type(kernel) in _BENDING or name in _BENDING_OPERATIONS
    if kernel not in ELEMENTWISE and not bending:
        return None
    deviation = np.sqrt(x.variance)
    mean, square = np.zeros_like(x.mean), np.zeros_like(x.mean)
    for node, weight in zip(_NODES, _WEIGHTS / _WEIGHTS.sum(), strict=True):
        value = _numpy(function(tf.cast(x.mean + node * deviation, tf.float32)))
        mean, square = mean + weight * value, square + weight * value**2
    return Normal(mean, np.maximum(square - mean**2, 0.0))


def clipped(x: Normal, low: float, high: float) -> Normal:
    """Returns the moments of min(max(x, low), high): of the clipped normal distribution.

    >>> standard = Normal(np.zeros(1), np.ones(1))
    >>> clipped(standard, 0.0, np.inf).mean.round(4)  # 1 / sqrt(2 pi)
    array([0.3989])
    """
    mean, deviation = x.mean, np.sqrt(np.maximum(x.variance, 1e-30))
    a, b = (low - mean) / deviation, (high - mean) / deviation
    below, inside, above = ndtr(a), ndtr(b) - ndtr(a), ndtr(-b)
    density_a, density_b = _density(a), _density(b)
    top = high if np.isfinite(high) else 0.0  # nothing lies above infinity
    b = np.where(np.isfinite(b), b, 0.0)
    first = mean * inside + deviation * (density_a - density_b) + low * below + top * above
    second = (
        mean**2 * inside
        + 2 * mean * deviation * (density_a - density_b)
        + deviation**2 * (inside + a * density_a - b * density_b)
        + low**2 * below
        + top**2 * above
    )
    return Normal(first, np.maximum(second - first**2, 0.0))


def _density(z: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * np.square(z)) / np.sqrt(2 * np.pi)


def _total(variances: list[np.ndarray]) -> np.ndarray:
    return sum(variances[1:], variances[0])


_SUMS: dict[str, Callable[[list[np.ndarray]], np.ndarray]] = {
    "Add": _total,
    "Subtract": _total,
    "Average": lambda variances: _total(variances) / len(variances) ** 2,
}
_BENDING = {layers.Activation, layers.ReLU, layers.LeakyReLU, layers.PReLU, layers.ELU}
_BENDING_OPERATIONS = {
    *("Relu", "Relu6", "LeakyRelu", "Elu", "Selu", "Gelu", "Sigmoid", "Silu", "Tanh"),
    *("HardSigmoid", "HardSilu", "Softplus"),
}
# What moves values or averages them over positions: neighbours are alike, so that a variance stays.
_LINEAR = {
    *(layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D),
    *(layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D),
    *(layers.GlobalAveragePooling3D, layers.Concatenate),
    *(layers.Cropping1D, layers.Cropping2D, layers.Cropping3D),
    *(layers.UpSampling1D, layers.UpSampling2D, layers.UpSampling3D),
    *(layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D),
    *(layers.Flatten, layers.Reshape, layers.Permute, layers.RepeatVector),
}
_LINEAR_OPERATIONS = {
    *("Concatenate", "ExpandDims", "GetItem", "Mean", "Moveaxis", "Ravel", "Reshape", "Split"),
    *("Squeeze", "Stack", "Swapaxes", "Transpose"),
}
