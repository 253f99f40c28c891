"""Batch normalization folded into the layer before it, or into the dense layer after it."""

import types
from typing import Any

import keras
import numpy as np

from tfcompress import graph

# Where each layer's kernel has its output channels, as axes from the end.
_LAYERS = keras.layers
SCALED_AXES: dict[type, tuple[int, ...]] = {
    _LAYERS.Dense: (-1,),
    _LAYERS.Conv1D: (-1,),
    _LAYERS.Conv2D: (-1,),
    _LAYERS.Conv3D: (-1,),
    _LAYERS.DepthwiseConv1D: (-2, -1),
    _LAYERS.DepthwiseConv2D: (-2, -1),
    _LAYERS.SeparableConv1D: (-1,),
    _LAYERS.SeparableConv2D: (-1,),
    _LAYERS.Conv1DTranspose: (-2,),
    _LAYERS.Conv2DTranspose: (-2,),
    _LAYERS.Conv3DTranspose: (-2,),
}


def fold_batch_norm(model: keras.Model) -> keras.Model:
    """Returns the model without the BatchNorm layers that a neighbour can absorb; exact.

    The new model is flat (`graph.functional`); `model` stays as it was. At inference both compute
    the same, up to float rounding (the arithmetic is done in float64).

    For y = BatchNorm(conv(x)), with g = gamma / sqrt(variance + epsilon) per output channel:

        kernel' = kernel * g        bias' = (bias - mean) * g + beta

    Folded: convolution, depthwise, separable and transposed convolution and dense, followed by a
    BatchNorm over the last axis, when the layer has no activation in between and nothing else reads
    its output; and a BatchNorm that only one dense layer reads, into that one. Any other BatchNorm
    stays. (Jacob et al. 2018, "Quantization and Training of Neural Networks", section 3.2)

    The new model's attribute `pre_activations` keeps, by layer name, the mean and the standard
    deviation per channel of what a BatchNorm said about its layer's outputs, before the activation
    (two float64 vectors; not saved with the model); `correct_bias` can use them in place of data.

    Raises:
        InputError: the model cannot be read as a graph; see `graph.functional`.

    >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3),
    ...                           keras.layers.BatchNormalization()])
    >>> [layer.name for layer in fold_batch_norm(model).layers[1:]]
    ['conv2d']
    """
    flat = graph.functional(model)
    after, before = _pairs(flat)
    folded: list[tuple[Any, Any, Any]] = []  # new layer, its old one, the BatchNorm it absorbs

    def call(node, copy, *args, **kwargs):
        operation = node.operation
        if id(operation) in after.norms or id(operation) in before.norms:
            return args[0]
        norm = after.hosts.get(id(operation)) or before.hosts.get(id(operation))
        if norm is None:
            return copy(*args, **kwargs)
        host = graph.copy_operation(operation, use_bias=True)
        fold = weights_after if id(operation) in after.hosts else _weights_before
        folded.append((host, fold, (operation, norm)))
        return host(*args, **kwargs)

    new = graph.rebuild(flat, call)
    for host, fold, pair in folded:
        host.set_weights(fold(*pair))
    known = {host.name: normalized(pair[1]) for host, fold, pair in folded if fold is weights_after}
    new.pre_activations = types.MappingProxyType(known)
    return new


def can_fold(model: keras.Model) -> bool:
    """Returns whether there is a BatchNorm that `fold_batch_norm` would fold."""
    after, before = _pairs(graph.functional(model))
    return bool(after.norms or before.norms)


def norms_to_fold(flat: keras.Model) -> dict[str, keras.layers.BatchNormalization]:
    """Returns the BatchNorms that the layer before absorbs, by its name, of a flat model."""
    hosts = _pairs(flat)[0].hosts
    return {x.name: hosts[id(x)] for x in flat.operations if id(x) in hosts}


class _Pairs:
    """BatchNorm layers that go, and the layers that absorb them, by `id`."""

    def __init__(self):
        self.norms: set[int] = set()
        self.hosts: dict[int, Any] = {}

    def add(self, host: Any, norm: Any) -> None:
        self.norms.add(id(norm))
        self.hosts[id(host)] = norm


def _pairs(flat: keras.Model) -> tuple[_Pairs, _Pairs]:
    """Returns the pairs (layer, BatchNorm after it) and (dense layer, BatchNorm before it)."""
    readers, calls = graph.consumers(flat), graph.calls(flat)
    after, before = _Pairs(), _Pairs()
    for node in graph.nodes(flat):
        norm = node.operation
        if not normalizes_last_axis(norm) or calls[id(norm)] > 1:
            continue
        (source,) = node.input_tensors
        host = source._keras_history.operation
        if (
            type(host) in SCALED_AXES
            and keras.activations.serialize(host.activation) == "linear"
            and len(readers[id(source)]) == 1
            and calls[id(host)] == 1
        ):
            after.add(host, norm)
            continue
        (target,) = node.outputs
        reader = readers[id(target)][0]
        if len(readers[id(target)]) == 1 and reader is not None:
            host = reader.operation
            free = id(host) not in before.hosts and id(host) not in after.hosts
            if type(host) is keras.layers.Dense and calls[id(host)] == 1 and free:
                before.add(host, norm)
    return _without_conflicts(after, before)


def _without_conflicts(after: _Pairs, before: _Pairs) -> tuple[_Pairs, _Pairs]:
    """A dense layer between two BatchNorms absorbs the one after it."""
    for host in before.hosts.keys() & after.hosts.keys():
        before.norms.discard(id(before.hosts.pop(host)))
    return after, before


def normalizes_last_axis(layer: Any) -> bool:
    if type(layer) is not keras.layers.BatchNormalization:
        return False
    axis = layer.axis if isinstance(layer.axis, int) else layer.axis[0]
    rank = layer.input_spec.ndim if layer.input_spec is not None else None
    return axis == -1 or (rank is not None and axis == rank - 1)


def scale_and_offset(norm: keras.layers.BatchNormalization) -> tuple[np.ndarray, np.ndarray]:
    """Returns float64 `scale`, `offset` per channel: at inference norm(x) = x * scale + offset."""
    scale, offset = map(keras.ops.convert_to_numpy, affine(norm))
    return scale, offset


def affine(norm: keras.layers.BatchNormalization) -> tuple[Any, Any]:
    """Returns the same as tensors, which a graph computes anew from the variables."""

    def value(variable):
        return keras.ops.cast(variable, "float64")

    scale = 1.0 / keras.ops.sqrt(value(norm.moving_variance) + norm.epsilon)
    if norm.scale:
        scale = scale * value(norm.gamma)
    offset = -value(norm.moving_mean) * scale
    if norm.center:
        offset = offset + value(norm.beta)
    return scale, offset


def normalized(norm: keras.layers.BatchNormalization) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation per channel of its outputs, by its moving statistics."""
    scale, offset = scale_and_offset(norm)
    mean = keras.ops.convert_to_numpy(norm.moving_mean).astype(np.float64)
    variance = keras.ops.convert_to_numpy(norm.moving_variance).astype(np.float64)
    return mean * scale + offset, np.abs(scale) * np.sqrt(variance)


def weights_after(layer: Any, norm: Any) -> list[np.ndarray]:
    """Returns the weights of a layer that absorbs the BatchNorm behind it; the last is its bias."""
    scale, offset = scale_and_offset(norm)
    *others, kernel = _kernels(layer)
    axes = SCALED_AXES[type(layer)]
    kernel = kernel * scale.reshape(_broadcast(kernel.shape, axes))
    bias = _bias(layer, scale.size) * scale + offset
    return [array.astype(np.float32) for array in (*others, kernel, bias)]


def _weights_before(dense: Any, norm: Any) -> list[np.ndarray]:
    scale, offset = scale_and_offset(norm)
    (kernel,) = _kernels(dense)
    bias = _bias(dense, kernel.shape[1]) + offset @ kernel
    return [array.astype(np.float32) for array in (kernel * scale[:, None], bias)]


def _kernels(layer: Any) -> list[np.ndarray]:
    arrays = layer.get_weights()
    return [array.astype(np.float64) for array in (arrays[:-1] if layer.use_bias else arrays)]


def _bias(layer: Any, channels: int) -> np.ndarray:
    return layer.get_weights()[-1].astype(np.float64) if layer.use_bias else np.zeros(channels)


def _broadcast(shape: tuple[int, ...], axes: tuple[int, ...]) -> list[int]:
    kept = {axis % len(shape) for axis in axes}
    return [size if axis in kept else 1 for axis, size in enumerate(shape)]
