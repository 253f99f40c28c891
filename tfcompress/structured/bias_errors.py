"""How far quantized weights move the means of layers' outputs, measured layer after layer."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress import graph, weights
from tfcompress.structured.layers.convolution import channel_axis
from tfcompress.structured.layers.dense import plain_weights

layers = keras.layers
_CONVOLUTIONS = (
    *(layers.Conv1D, layers.Conv2D, layers.Conv3D),
    *(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose),
    *(layers.DepthwiseConv1D, layers.DepthwiseConv2D),
    *(layers.SeparableConv1D, layers.SeparableConv2D),
)


@dataclasses.dataclass(frozen=True, eq=False)
class MeanError:
    """`shift`: what the bias needs, float64 per output channel; `size`: the outputs' root mean
    square, all before the activation."""

    shift: np.ndarray
    size: float

    @property
    def relative(self) -> float:
        return float(np.sqrt(np.mean(self.shift**2)) / (self.size or 1.0))


class Layers:
    """The layers of a flat model that is ours to change, run with its weights or with others.

    `replaced`: by `id` of a variable the array that takes its place. Layers whose bias can be
    corrected run without their activation, which `activate` applies.
    """

    def __init__(self, flat: keras.Model, replaced: Mapping[int, np.ndarray]):
        self.flat = flat
        self.kernels = {id(kernel.variable) for kernel in weights.kernels(flat)}
        self._replaced = {id(v): v for v in flat.variables if id(v) in replaced}
        self._values = {
            key: tf.convert_to_tensor(replaced[key], dtype=variable.dtype)
            for key, variable in self._replaced.items()
        }
        self._activations: dict[int, Any] = {}
        for layer in flat.layers:
            if has_bias(layer):
                self._activations[id(layer)] = layer.activation
                layer.activation = keras.activations.linear

    def reason(self, operation: Any) -> str | None:
        """Returns why an operation's bias is not corrected: "" if it is, None if it has no part."""
        variables = getattr(operation, "variables", [])
        kernels = [v for v in variables if id(v) in self.kernels]
        if not kernels:
            return None
        if not any(id(v) in self._values for v in kernels):
            return "its weights stay float"
        if has_bias(operation):
            return ""
        if not plain_weights(operation):
            return "it has quantized weights or LoRA factors"
        return f"{type(operation).__name__} has no single bias that is added to its outputs"

    def run(self, operation: Any, args: Any, kwargs: Any, values: Mapping[int, Any] | None) -> Any:
        """Returns the outputs with `values`, by `id`, in the place of variables; None: as it is."""
        variables = getattr(operation, "variables", [])
        mapping = [(v, values[id(v)]) for v in variables if values and id(v) in values]
        with keras.StatelessScope(state_mapping=mapping):  # what a layer writes is dropped
            return operation(*args, **kwargs)

    def value(self, variable: Any, moved: bool) -> Any:
        """Returns a variable's value, or what takes its place."""
        return self._values.get(id(variable), variable.value) if moved else variable.value

    def own(self, operation: Any, args: Any, kwargs: Any) -> Any:
        return self.run(operation, args, kwargs, None)

    def other(self, operation: Any, args: Any, kwargs: Any) -> Any:
        return self.run(operation, args, kwargs, self._values)

    def activation(self, layer: Any) -> Any:
        """Returns the activation of a layer that runs without it, None for linear."""
        function = self._activations.get(id(layer))
        return None if function is keras.activations.linear else function


def has_bias(layer: Any) -> bool:
    """Returns whether the layer adds one bias per channel to its outputs, or could."""
    if not isinstance(layer, keras.layers.Layer) or not plain_weights(layer):
        return False
    if type(layer) is layers.EinsumDense:
        last = layer.equation.replace(" ", "")[-1]
        return layer.bias_axes == last and len(layer.bias.shape) == 1
    return type(layer) is layers.Dense or type(layer) in _CONVOLUTIONS


def bias_axis(layer: Any, rank: int) -> int:
    """Returns the axis of a layer's outputs along which its bias is added."""
    return channel_axis(layer, rank) if type(layer) in _CONVOLUTIONS else rank - 1


class _Seen:
    """A tensor of both models on all samples, batch by batch, for as long as somebody reads it."""

    def __init__(self, batches: Sequence[tuple[Any, Any]], reads: int):
        self.batches = batches
        self.reads = reads

    def read(self) -> None:
        self.reads -= 1
        if self.reads == 0:
            self.batches = []


def by_samples(
    run: Layers, arrays: Sequence[np.ndarray], batch_size: int
) -> tuple[dict[str, MeanError], dict[str, str]]:
    """Returns the mean errors by layer, and for other layers with kernels the reason.

    `arrays`: one for each input. Both models run once, node by node: where a layer's bias is
    corrected, all that follows already sees the corrected outputs.
    """
    readers = graph.consumers(run.flat)
    errors: dict[str, MeanError] = {}
    reasons: dict[str, str] = {}

    def call(node, path, args, kwargs):
        operation = node.operation
        reason = run.reason(operation)
        if reason:
            reasons[operation.name] = reason
        given = [x for x in keras.tree.flatten((args, kwargs)) if isinstance(x, _Seen)]
        batches = []
        for number in range(len(given[0].batches)):
            exact, moved = (
                keras.tree.map_structure(
                    lambda x, n=number, s=side: x.batches[n][s] if isinstance(x, _Seen) else x,
                    (args, kwargs),
                )
                for side in (0, 1)
            )
            batches.append((run.own(operation, *exact), run.other(operation, *moved)))
        for x in given:
            x.read()
        if reason == "":
            batches = _corrected(operation, batches, errors)
        if (function := run.activation(operation)) is not None:
            batches = [(function(exact), function(moved)) for exact, moved in batches]
        flat_batches = [tuple(map(keras.tree.flatten, pair)) for pair in batches]
        outputs = [
            _Seen([(exact[i], moved[i]) for exact, moved in flat_batches], len(readers[id(x)]))
            for i, x in enumerate(node.outputs)
        ]
        return outputs[0] if len(outputs) == 1 else outputs

    inputs = []
    for array, tensor in zip(arrays, keras.tree.flatten(graph.inputs_of(run.flat)), strict=True):
        rows = range(0, len(array), batch_size)
        cut = [tf.cast(array[start : start + batch_size], tensor.dtype) for start in rows]
        inputs.append(_Seen([(part, part) for part in cut], len(readers[id(tensor)])))
    graph.interpret(run.flat, keras.tree.pack_sequence_as(graph.inputs_of(run.flat), inputs), call)
    return errors, reasons


def _corrected(layer: Any, batches: list[Any], errors: dict[str, MeanError]) -> list[Any]:
    """Returns the outputs with the quantized side's means put right; a layer's first call measures.

    Batches count by their rows.
    """
    rank = len(batches[0][0].shape)
    axis = bias_axis(layer, rank)
    if layer.name not in errors:
        rows = [exact.shape[0] for exact, _ in batches]
        means = [[*_means(exact, axis), _means(moved, axis)[0]] for exact, moved in batches]
        exact, squares, moved = np.average(means, axis=0, weights=rows)
        errors[layer.name] = MeanError(exact - moved, float(np.sqrt(squares.mean())))
    shape = np.ones(rank, int)
    shape[axis] = -1
    shift = tf.cast(errors[layer.name].shift.reshape(shape), batches[0][1].dtype)
    return [(exact, moved + shift) for exact, moved in batches]


def _means(x: Any, axis: int) -> list[np.ndarray]:
    """Returns the means of the values and of their squares along an axis."""
    others = [i for i in range(len(x.shape)) if i != axis]
    x = tf.cast(x, tf.float32)
    return [np.asarray(tf.reduce_mean(y, others), np.float64) for y in (x, tf.square(x))]
