"""The places where layers read the channels of a model, looked at while it runs on data."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress import graph
from tfcompress.structured import evaluation
from tfcompress.structured.groups import ChannelGroups, Group
from tfcompress.structured.trace import Axes


@dataclasses.dataclass(frozen=True, eq=False)
class _Tensor:
    """A tensor on its way through the model, with what the trace knows of its axes."""

    value: Any
    axes: Axes | None


@dataclasses.dataclass(frozen=True)
class Site:
    """A place where a group's channels enter a layer that reads them: `indices` of the axis there
    are the group's `channels`."""

    group: Group
    channels: np.ndarray
    indices: np.ndarray


class Sites:
    """Runs a model on batches and measures the channels of its groups where layers read them.

    `measure(x, axis)` gets the tensor that enters such a layer and the axis of its channels, and
    returns a tensor; it is compiled with the model, which runs as at inference and keeps its state.
    """

    def __init__(
        self, model: keras.Model, groups: ChannelGroups, measure: Callable[[Any, int], Any]
    ):
        self._model = model
        self._groups = groups
        self._measure = measure
        self._tensors = groups.trace.tensors
        self._group_of = np.full(groups.channel_of.size, -1)
        self._position = np.zeros(groups.channel_of.size, int)
        for number, own in enumerate(groups.labels):
            self._group_of[own] = number
            self._position[own] = np.arange(own.size)
        self._readers = [
            {id(member.layer) for member in group.members if member.role == "in"}
            for group in groups
        ]
        self._sites: list[Site] = []
        self._step = tf.function(self._measured, reduce_retracing=True)

    def batches(
        self, read: Iterable[evaluation.Batch]
    ) -> Iterator[tuple[int, list[tuple[Site, np.ndarray]]]]:
        """Yields for each batch its number of rows, and the sites with what was measured there."""
        for x, _ in read:
            arrays = evaluation.inputs_in_order(self._model, x)
            found = [np.asarray(value) for value in evaluation.run(self._step, arrays)]
            yield len(arrays[0]), list(zip(self._sites, found, strict=True))

    def _measured(self, arrays: list[Any]) -> list[Any]:
        self._sites.clear()  # the function may be traced again, for another shape
        found: list[Any] = []

        def call(node, path, args, kwargs):
            given = [x for x in keras.tree.flatten((args, kwargs)) if isinstance(x, _Tensor)]
            for tensor in given:
                for axis, site in self._sites_of(node.operation, tensor):
                    self._sites.append(site)
                    found.append(self._measure(tensor.value, axis))
            args, kwargs = keras.tree.map_structure(
                lambda x: x.value if isinstance(x, _Tensor) else x, (args, kwargs)
            )
            outputs = keras.tree.flatten(node.operation(*args, **kwargs))
            known = [self._tensors.get(id(x)) for x in node.outputs]
            seen = [_Tensor(x, axes) for x, axes in zip(outputs, known, strict=True)]
            return seen[0] if len(seen) == 1 else seen

        specs = keras.tree.flatten(graph.inputs_of(self._model))
        inputs = [
            _Tensor(tf.cast(array, spec.dtype), None)
            for array, spec in zip(arrays, specs, strict=True)
        ]
        with keras.StatelessScope():  # whatever a layer writes to its state is dropped
            graph.interpret(self._model, inputs, call)
        return found

    def _sites_of(self, operation: Any, tensor: _Tensor) -> Iterator[tuple[int, Site]]:
        if tensor.axes is None or not isinstance(operation, keras.layers.Layer):
            return
        inside = {id(layer) for layer in operation._flatten_layers()}
        for axis, labels in enumerate(tensor.axes.labels):
            if labels is None:
                continue
            channels = self._groups.channel_of[labels]
            numbers = self._group_of[channels]
            for number in np.unique(numbers[numbers >= 0]).tolist():
                if self._readers[number] & inside:
                    (indices,) = np.nonzero(numbers == number)
                    own = self._position[channels[indices]]
                    yield axis, Site(self._groups[number], own, indices)
