"""Removal: a new, smaller model whose weights are slices of the old one's."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tfcompress import graph
from tfcompress.errors import InputError
from tfcompress.structured.groups import ChannelGroups
from tfcompress.structured.optimizer_state import slice_optimizer
from tfcompress.structured.trace import Sizes, Trace, count_kept


def keep_channels(
    groups: ChannelGroups,
    kept: Mapping[str, Any],
    optimizer: bool = False,
    *,
    biases: Mapping[int, np.ndarray] | None = None,
) -> keras.Model:
    """Returns a smaller model that has only the chosen channels; `groups.model` stays as it is.

    The new model is of the same kind, plain Keras: the layers keep their names and settings, nested
    models stay nested, shared layers shared; the configurations of the layers follow the narrower
    tensors, and each weight is a slice of the old one's. It computes what the old model computes
    when the weights that read the removed channels are zero, up to float rounding, except where
    `Group.inexact` says otherwise. Memory is linear in the weights.

    Args:
        groups: from `channel_groups(model)`.
        kept: for each group's name the channels that remain, numbers in [0, size), at least one.
            Groups that are not named stay whole.
        optimizer: whether the new model is compiled as the old one is, with the slices of its
            optimizer's state (momenta, step); else it is not compiled.
        biases: what is added to the biases of layers, by their `id`: float64, one for each of the
            old layer's outputs. A layer without a bias gets one.

    Raises:
        InputError: a name that is no group's, channels out of range, a group that would be empty,
            a layer that cannot be copied from its configuration.

    Source: Fang et al. 2023, "DepGraph: Towards Any Structural Pruning".

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(6, name="hidden"),
    ...                           keras.layers.Dense(2)])
    >>> small = keep_channels(channel_groups(model), {"hidden": [0, 2, 5]})
    >>> small.get_layer("hidden").units
    3
    """
    labels = groups.stays(kept)
    pairs: list[tuple[Any, Any]] = []
    small = _rebuild(groups.model, groups.trace, count_kept(labels), _Built(pairs, biases or {}))
    slices = {key: np.nonzero(labels[use.labels])[0] for key, use in groups.trace.uses.items()}
    factors = {key: factor(count_kept(labels)) for key, factor in groups.trace.factors.items()}
    variables = [pair for old, new in pairs for pair in _variables(old, new)]
    for old, new in variables:
        value = take(keras.ops.convert_to_numpy(old), id(old), slices)
        if tuple(new.shape) != value.shape:
            raise RuntimeError(f"{old.path} became {tuple(new.shape)}, must be {value.shape}")
        factor = factors.get(id(old), 1.0)
        new.assign(value if factor == 1.0 else value * np.asarray(factor, value.dtype))
    for old, new in pairs:
        graph.refresh(new)
        if biases and id(old) in biases:
            _add_bias(new, biases[id(old)], old, slices)
    if optimizer:
        slice_optimizer(groups.model, small, variables, slices)
    return small


def take(value: np.ndarray, key: int, slices: Mapping[tuple[int, int], np.ndarray]) -> np.ndarray:
    """Returns what is kept of a weight, along each of its axes that follows channels."""
    for axis in range(value.ndim):
        indices = slices.get((key, axis))
        if indices is not None and indices.size < value.shape[axis]:
            value = np.take(value, indices, axis)
    return value


class _Built:
    """The new operation of each old one, and the pairs of layers whose weights correspond."""

    def __init__(self, pairs: list[tuple[Any, Any]], biases: Mapping[int, np.ndarray]):
        self.pairs = pairs
        self.biases = biases
        self._new: dict[int, Any] = {}

    def once(self, operation: Any, make: Any) -> Any:
        if id(operation) not in self._new:
            self._new[id(operation)] = make()
            if not isinstance(operation, keras.Model):
                self.pairs.append((operation, self._new[id(operation)]))
        return self._new[id(operation)]


def _rebuild(
    model: keras.Model, found: Trace, size: Sizes, built: _Built, like: Any = None
) -> keras.Model:
    """Returns `model` with edited configurations, built; `like` holds a nested model's inputs."""

    def new(operation: Any, inputs: Any) -> Any:
        if isinstance(operation, keras.Model):
            return _rebuild(operation, found, size, built, inputs)
        change, _ = found.edits.get(id(operation), (None, ()))
        changes = change(operation.get_config(), size) if change else {}
        if id(operation) in built.biases and hasattr(operation, "use_bias"):
            changes["use_bias"] = True
        return graph.copy_operation(operation, **changes)

    def call(node, path, args, kwargs):
        operation = node.operation
        if id(node) in found.calls:
            args, kwargs = found.calls[id(node)](args, kwargs, size)
        inputs = args[0] if args else kwargs
        return built.once(operation, lambda: new(operation, inputs))(*args, **kwargs)

    inputs = graph.new_inputs(model, like)
    outputs = graph.interpret(model, inputs, call, inside=False)
    if isinstance(model, keras.Sequential):
        layers = [built.once(layer, lambda: None) for layer in model.layers]
        small = keras.Sequential([_input_layer(inputs), *layers], name=model.name)
    else:
        small = keras.Model(inputs, outputs, name=model.name)
    small.trainable = model.trainable
    return small


def _input_layer(x: keras.KerasTensor) -> keras.layers.Layer:
    return x._keras_history.operation


def _variables(old: Any, new: Any) -> list[tuple[keras.Variable, keras.Variable]]:
    if not isinstance(old, keras.layers.Layer):
        return []
    if len(old.variables) != len(new.variables) - _gained_bias(old, new):
        raise InputError(
            f"{type(old).__name__} '{old.name}' must be rebuilt with the weights that it has. "
            f"Received: {len(old.variables)} variables, and {len(new.variables)} when rebuilt"
        )
    # A bias that the new layer has gained comes last.
    return list(zip(old.variables, new.variables, strict=False))


def _gained_bias(old: Any, new: Any) -> bool:
    return bool(getattr(new, "use_bias", False)) and not getattr(old, "use_bias", False)


def _add_bias(
    new: Any, bias: np.ndarray, old: Any, slices: Mapping[tuple[int, int], np.ndarray]
) -> None:
    """Adds what is kept of `bias` to the new layer's; outputs are its kernel's last axis.

    A transposed convolution has its outputs on the last but one.
    """
    kernel = getattr(old, "pointwise_kernel", None)
    kernel = old.kernel if kernel is None else kernel
    outputs = len(kernel.shape) - (2 if type(old).__name__.endswith("Transpose") else 1)
    made = slices.get((id(kernel), outputs))
    before = keras.ops.convert_to_numpy(new.bias).astype(np.float64)
    new.bias.assign(before + (bias if made is None else bias[made]))
