"""Which Keras layers an operator of a float `.tflite` file computes, found by its values."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tfcompress import graph, weights
from tfcompress.tflite.compare import arrange
from tfcompress.tflite.differences import Values
from tfcompress.tflite.steps import Step

_TOLERANCE = 1e-3  # of the largest value; float rounding over many layers stays below


@dataclasses.dataclass(frozen=True)
class Place:
    """Where in the Keras model an operator is.

    path: of the layer that tells it best, that with a kernel; layers: the paths of all that the
    operator computes; operation: of the flat model, whose output is the operator's; None for one
    inside of a layer.
    """

    path: str
    layers: tuple[str, ...]
    operation: Any = None


def flat_paths(model: keras.Model, flat: keras.Model) -> dict[str, str]:
    """Returns the path of each layer of the flat model, by its name, in the user's `model`."""
    named = weights.origin_paths(model, graph.flatten(model)[1])
    return {o.name: named.get(o.name, o.name) for o in flat.operations}


def by_values(
    flat: keras.Model,
    paths: dict[str, str],
    steps: Sequence[Step],
    sample: Sequence[np.ndarray],
    values: Values,
) -> dict[int, Place]:
    """Returns the place of each step of a float file, by its number.

    A tensor of the file and one of the flat Keras model are the same if their values are, for one
    sample; of several the first in the order of the graph that no other step has. Layers whose
    outputs are not in the file, as a BatchNorm that was folded, belong to the step below them.
    """
    nodes = graph.nodes(flat)
    tensors = [tensor for node in nodes for tensor in node.outputs]
    inside = keras.Model(flat.inputs, tensors)
    found = [keras.ops.convert_to_numpy(y) for y in _listed(inside(arrange(inside, sample)))]
    producers = {id(tensor): node for node in nodes for tensor in node.outputs}
    kernels = {kernel.layer_path.split("/")[0] for kernel in weights.kernels(flat)}
    owners: dict[int, int] = {}  # id of a tensor of the flat model -> number of its step
    matched: dict[int, Any] = {}
    for step in steps:
        true = values[step.outputs[0]]
        same = [
            tensor
            for tensor, value in zip(tensors, found, strict=True)
            if id(tensor) not in owners and _same(true, value)
        ]
        if same:
            owners[id(same[0])] = step.number
            matched[step.number] = same[0]
    named = {
        number: _place(tensor, owners, producers, paths, kernels)
        for number, tensor in matched.items()
    }
    return named | _inner(steps, named)


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    if _squeezed(one) != _squeezed(other):
        return False
    a, b = np.ravel(one), np.ravel(other)
    return float(np.abs(a - b).max(initial=0)) <= _TOLERANCE * float(np.abs(b).max(initial=0))


def _squeezed(array: np.ndarray) -> list[int]:
    return [size for size in array.shape if size != 1]


def _place(
    tensor: Any, owners: dict[int, int], producers: Any, paths: dict[str, str], kernels: set[str]
) -> Place:
    operations, waiting, seen = [], [tensor], set()
    while waiting:
        node = producers.get(id(waiting.pop()))
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        operations.append(node.operation)
        waiting += [x for x in node.input_tensors if id(x) not in owners]
    layers = tuple(dict.fromkeys(paths[operation.name] for operation in reversed(operations)))
    main = next((o for o in operations if o.name in kernels), operations[0])
    return Place(paths[main.name], layers, operations[0])


def _inner(steps: Sequence[Step], named: dict[int, Place]) -> dict[int, Place]:
    """Returns the places of steps inside of layers: each is in the layer of a step below it."""
    found: dict[int, Place] = {}
    for step in reversed(steps):
        if step.number in named:
            continue
        readers = [s for s in steps if set(step.outputs) & set(s.sources)]
        below = [place for s in readers if (place := named.get(s.number, found.get(s.number)))]
        if below:
            found[step.number] = Place(below[0].path, below[0].layers)
    return found


def _listed(outputs: Any) -> list[Any]:
    return list(outputs) if isinstance(outputs, list | tuple) else [outputs]
