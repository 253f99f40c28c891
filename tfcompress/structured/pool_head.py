"""A classifier's head made small: Flatten -> Dense becomes global average pooling -> Dense."""

import math
from typing import Any

import keras
import numpy as np

from tfcompress import graph, weights
from tfcompress.errors import InputError

_LAYERS = keras.layers
_POOLING = {
    3: _LAYERS.GlobalAveragePooling1D,
    4: _LAYERS.GlobalAveragePooling2D,
    5: _LAYERS.GlobalAveragePooling3D,
}
# What treats each value alone, so that it may stand before or after the pooling.
_ELEMENTWISE = (_LAYERS.Activation, _LAYERS.ReLU, _LAYERS.LeakyReLU, _LAYERS.ELU)
_NOT_ELEMENTWISE = ("softmax", "log_softmax", "sparsemax", "glu")


def pool_head(model: keras.Model) -> keras.Model:
    """Returns a new model in which Flatten -> Dense is global average pooling -> Dense.

    The new model is flat (`graph.functional`), has to be compiled and should be trained on;
    `model` stays as it was. Of a feature map of P positions and C channels, Flatten hands P * C
    values to the Dense layer, whose kernel has as many rows; the new one has C rows,

        kernel'[c] = sum over positions p of kernel[p, c]        bias' = bias

    which is exact for a feature map that is the same at all positions, and else forgets where
    things are: that is what training has to make up for. A Dense of the same name and output.

    Dropout and activations (not softmax) may stand between the two. Every such pair of the model is
    replaced; a Flatten that is not followed by a Dense stays.

    Raises:
        InputError: there is no such pair; the line says what stands behind each Flatten instead.

    Source: Lin, Chen and Yan 2014, "Network In Network", section 3.2.

    >>> model = keras.Sequential([keras.Input((8, 8, 16)), keras.layers.Flatten(),
    ...                           keras.layers.Dense(10)])
    >>> model.count_params(), pool_head(model).count_params()
    (10250, 170)
    """
    flat = graph.functional(model)
    pairs, reasons = _pairs(flat)
    if not pairs:
        found = "; ".join(reasons) or "no Flatten over more than one position"
        raise InputError(
            f"Model '{model.name}' must have a Flatten that one Dense reads, for pool_head. "
            f"Found: {found}."
        )
    names = weights.Names(operation.name for operation in flat.operations)
    dense_layers = {id(dense): shape for shape, dense in pairs.values()}
    new_layers: list[tuple[Any, Any]] = []

    def call(node: Any, copy: Any, *args: Any, **kwargs: Any) -> Any:
        operation = node.operation
        if id(node) in pairs:
            pooling = _POOLING[len(args[0].shape)]
            return pooling(name=names.unique(f"{operation.name}_pool"))(args[0])
        if id(operation) in dense_layers:
            copy = graph.copy_operation(operation)
            new_layers.append((operation, copy))
        return copy(*args, **kwargs)

    new = graph.rebuild(flat, call)
    for old, dense in new_layers:
        dense.set_weights(_summed(old, dense_layers[id(old)]))
    return new


def _pairs(flat: keras.Model) -> tuple[dict[int, tuple[Any, Any]], list[str]]:
    """Returns, by `id` of a Flatten's node, its input's shape and its Dense; and why others are not
    among them."""
    readers, calls = graph.consumers(flat), graph.calls(flat)
    pairs, reasons = {}, []
    for node in graph.nodes(flat):
        if not _flattens(node):
            continue
        dense, reason = _dense_behind(node, readers)
        if not reason and calls[id(dense)] > 1:
            reason = f"Dense '{dense.name}', which is called in several places,"
        if not reason and getattr(node.operation, "data_format", None) == "channels_first":
            reason = "channels_first data"
        if reason:
            reasons.append(f"{reason} behind {_title(node.operation)}")
        else:
            pairs[id(node)] = tuple(node.input_tensors[0].shape[1:]), dense
    return pairs, reasons


def _flattens(node: Any) -> bool:
    """Whether the call makes rows (n, P * C) of feature maps with more than one position."""
    if type(node.operation) not in (_LAYERS.Flatten, _LAYERS.Reshape):
        return False
    shape, flat = node.input_tensors[0].shape, node.outputs[0].shape
    return (
        len(shape) in _POOLING
        and len(flat) == 2
        and None not in shape[1:]
        and math.prod(shape[1:-1]) > 1
    )


def _dense_behind(node: Any, readers: Any) -> tuple[Any, str]:
    """Returns the Dense that alone reads what the node puts out, or what stands there instead."""
    while True:
        below = readers[id(node.outputs[0])]
        if not below:
            return None, "nothing"
        if len(below) > 1:
            found = [_title(b.operation) if b else "the model's output" for b in below]
            return None, f"several readers ({', '.join(found)})"
        node = below[0]
        if node is None:
            return None, "the model's output"
        if type(node.operation) is _LAYERS.Dense:
            return node.operation, ""
        if not (graph.is_identity(node.operation) or _is_elementwise(node.operation)):
            return None, _title(node.operation)


def _is_elementwise(operation: Any) -> bool:
    name = getattr(getattr(operation, "activation", None), "__name__", "")
    return isinstance(operation, _ELEMENTWISE) and name not in _NOT_ELEMENTWISE


def _summed(dense: Any, shape: tuple[int, ...]) -> list[np.ndarray]:
    kernel, *bias = dense.get_weights()
    by_position = kernel.astype(np.float64).reshape(-1, shape[-1], kernel.shape[1])
    return [by_position.sum(axis=0).astype(kernel.dtype), *bias]


def _title(operation: Any) -> str:
    return f"{type(operation).__name__} '{operation.name}'"
