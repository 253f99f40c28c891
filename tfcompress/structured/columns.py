"""Where the columns of an input go in a model's graph, and the weights that belong to each."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tfcompress import graph
from tfcompress.errors import InputError

_LAYERS = keras.layers
_CONVOLUTIONS = (_LAYERS.Conv1D, _LAYERS.Conv2D, _LAYERS.Conv3D)
_RECURRENT = (_LAYERS.SimpleRNN, _LAYERS.LSTM, _LAYERS.GRU)
# Layers and operations without weights that leave each column (or channel) to itself.
_PASSING = {
    *("Activation", "ReLU", "LeakyReLU", "ELU", "Rescaling", "KeptFeatures", "Relu", "Relu6"),
    *("Sigmoid", "Tanh", "Silu", "Cast", "Negative", "Absolute", "Square", "Sqrt", "Exp", "Log"),
    *("Log1p", "Clip", "MaxPooling1D", "MaxPooling2D", "AveragePooling1D", "AveragePooling2D"),
    *("GlobalMaxPooling1D", "GlobalMaxPooling2D", "GlobalAveragePooling1D", "ZeroPadding1D"),
    *("GlobalAveragePooling2D", "ZeroPadding2D", "Cropping1D", "Cropping2D", "UpSampling1D"),
    *("UpSampling2D", "RandomFlip", "RandomTranslation", "RandomRotation", "RandomZoom"),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Reader:
    """A layer that mixes columns: index i of its input's last axis is column `columns[i]`, -1 if
    it comes from elsewhere. `tensor` is that input, in the flat model."""

    layer: Any
    tensor: Any
    columns: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Flow:
    """`readers` mix columns; `scales` keep them apart, with weights for each (BatchNorm), by `id`
    of the layer with the columns of its axis."""

    readers: Mapping[int, Reader]
    scales: Mapping[int, tuple[Any, np.ndarray]]


def flow(flat: keras.Model, start: Any) -> Flow:
    """Returns where the columns of the input `start` go.

    Raises:
        InputError: something else than a known layer reads them; the line says which.
    """
    columns = {id(start): np.arange(start.shape[-1])}
    readers: dict[int, Reader] = {}
    scales: dict[int, tuple[Any, np.ndarray]] = {}
    calls = graph.calls(flat)
    for node in graph.nodes(flat):
        given = [columns.get(id(x)) for x in node.input_tensors]
        if all(found is None for found in given):
            continue
        operation, tensor = node.operation, node.input_tensors[0]
        reads, has_scales = _reads(operation), _has_scales(operation, len(tensor.shape))
        if (reads or has_scales) and calls[id(operation)] > 1:
            raise _refusal(operation, "it is called in several places")
        if reads:
            readers[id(operation)] = Reader(operation, tensor, _known(given))
            continue
        if has_scales:
            scales[id(operation)] = operation, _known(given)
        columns[id(node.outputs[0])] = _passed(node, given)
    for tensor in flat.outputs:
        if id(tensor) in columns:
            name = tensor._keras_history.operation.name
            raise InputError(f"Columns of an input must not be an output of the model: '{name}'.")
    if not readers:
        raise InputError(f"Input '{start.name}' of model '{flat.name}' must be read by a layer.")
    return Flow(readers, scales)


def _reads(operation: Any) -> bool:
    if getattr(operation, "data_format", None) == "channels_first":
        raise _refusal(operation, "it takes channels_first data")
    if type(operation) in _CONVOLUTIONS:
        if operation.groups > 1:
            raise _refusal(operation, "it has groups")
        return True
    return type(operation) is _LAYERS.Dense or type(operation) in _RECURRENT


def _has_scales(operation: Any, rank: int) -> bool:
    if type(operation) is _LAYERS.PReLU:
        return rank - 1 not in (operation.shared_axes or ())
    if type(operation) in (_LAYERS.BatchNormalization, _LAYERS.Normalization):
        axis = operation.axis
        axes = [a % rank for a in (axis if isinstance(axis, list | tuple) else [axis])]
        if axes != [rank - 1]:
            raise _refusal(operation, f"its axis is {axis}, not the columns'")
        return True
    return False


def _passed(node: Any, given: list[Any]) -> np.ndarray:
    """Returns the columns of the last axis of what an operation puts out."""
    operation, name = node.operation, type(node.operation).__name__
    shape = node.input_tensors[0].shape
    if name == "Concatenate" and operation.axis in (-1, len(shape) - 1):
        parts = [
            np.full(x.shape[-1], -1) if columns is None else columns
            for x, columns in zip(node.input_tensors, given, strict=True)
        ]
        return np.concatenate(parts)
    if len(given) > 1:
        raise _refusal(operation, "they meet other tensors there")
    if type(operation) is _LAYERS.Flatten and None not in shape[1:]:
        return np.tile(given[0], math.prod(shape[1:-1]))
    if name == "Rescaling" and np.size(operation.scale) + np.size(operation.offset) > 2:
        raise _refusal(operation, "it has a scale for each column: use Normalization")
    if name in _PASSING or graph.is_identity(operation) or type(operation) is _LAYERS.PReLU:
        return given[0]
    if type(operation) in (_LAYERS.BatchNormalization, _LAYERS.Normalization):
        return given[0]
    raise _refusal(operation, "it is not known what it does with them")


def _known(given: list[Any]) -> np.ndarray:
    return next(columns for columns in given if columns is not None)


def remaining(columns: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Returns the indices of an axis that stay when the columns `kept` do: int64, ascending."""
    return np.nonzero(np.isin(columns, kept) | (columns < 0))[0]


def without(operation: Any, indices: np.ndarray, fill: np.ndarray | None = None) -> tuple[Any, Any]:
    """Returns a new unbuilt layer for the columns `indices` alone, and its weights to come.

    `fill` (columns,) is what a reader takes in place of the columns that go: constants, which its
    bias takes in. Where a convolution pads with zeros that is not exact at the edges.
    """
    if type(operation) is _LAYERS.Normalization:
        mean, variance = (np.ravel(x)[indices] for x in (operation.mean, operation.variance))
        changes = {"mean": mean.tolist(), "variance": variance.tolist()}
        return graph.copy_operation(operation, **changes), None
    if not _reads(operation):
        values = [value[..., indices] for value in operation.get_weights()]
        return graph.copy_operation(operation), values
    first, *others = operation.get_weights()
    axis = 0 if type(operation) in _RECURRENT else first.ndim - 2
    kernel = np.take(first, indices, axis=axis)
    gone = np.setdiff1d(np.arange(first.shape[axis]), indices)
    recurrent = type(operation) in _RECURRENT
    if fill is None or not fill[gone].any() or (recurrent and not operation.use_bias):
        return graph.copy_operation(operation), [kernel, *others]
    removed = np.take(first, gone, axis=axis).astype(np.float64)
    total = fill[gone] @ removed.sum(axis=tuple(range(removed.ndim - 2)))
    bias = others.pop() if operation.use_bias else np.zeros(total.shape, first.dtype)
    if bias.ndim == 2:  # of a GRU, inputs and state apart
        total = np.stack([total, np.zeros_like(total)])
    values = [kernel, *others, (bias + total).astype(first.dtype)]
    return graph.copy_operation(operation, use_bias=True), values


def _refusal(operation: Any, reason: str) -> InputError:
    title = f"{type(operation).__name__} '{operation.name}'"
    return InputError(f"Columns of the input cannot be removed in front of {title}: {reason}.")
