"""Which channels of a model stand and fall together: labels that flow through its graph.

A label is one channel. The layer that makes channels gives each a new label; from there the labels
travel with the data: every axis of every tensor, and of every weight that meets one, says for each
of its indices which channel that is. Where two tensors are added, their labels are tied; where
something mixes channels in a way that no weight can be cut out of, they are pinned. What is tied
is found at the end, in linear time, as the connected components of a graph.
(After the dependency graph of Fang et al. 2023, "DepGraph: Towards Any Structural Pruning".)

How a layer passes labels on is told in `tfcompress.structured.layers`, a function for each kind.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, overload

import keras
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tfcompress import graph
from tfcompress.errors import InputError

Labels = np.ndarray | None  # int64, one per index of an axis; None: the axis keeps all its indices
PINNED = 0  # the label of an index that stays


@dataclasses.dataclass(frozen=True, eq=False)
class Axes:
    """A tensor in the graph: its shape, and the labels of each of its axes."""

    shape: tuple[int | None, ...]
    labels: tuple[Labels, ...]

    @classmethod
    def fixed(cls, shape: Sequence[int | None]) -> "Axes":
        """Returns a tensor of which no index can go."""
        return cls(tuple(shape), (None,) * len(shape))

    @classmethod
    def on(cls, shape: Sequence[int | None], axis: int, labels: Labels) -> "Axes":
        """Returns a tensor with labels on one axis, fixed elsewhere."""
        return cls.fixed(shape).having(axis, labels)

    def having(self, axis: int, labels: Labels) -> "Axes":
        replaced = list(self.labels)
        replaced[axis] = labels
        return Axes(self.shape, tuple(replaced))

    @property
    def rank(self) -> int:
        return len(self.shape)


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One call of an operation: `inputs` are its tensors in order, `outputs` their shapes."""

    operation: Any
    path: str
    inputs: list[Axes]
    args: Any
    kwargs: Any
    outputs: list[tuple[int | None, ...]]
    node: Any = None


@dataclasses.dataclass(frozen=True, eq=False)
class Use:
    """A weight that has an index for each channel along one of its axes."""

    layer: keras.layers.Layer
    path: str
    variable: keras.Variable
    axis: int
    role: str
    labels: np.ndarray


Sizes = Callable[[np.ndarray], int]  # labels -> how many of them are kept
ConfigEdit = Callable[[dict[str, Any], Sizes], dict[str, Any]]


class Trace:
    """What the walk through a model has found; the layers' functions write it."""

    def __init__(self) -> None:
        self.count = 1  # label 0 is PINNED
        self.uses: dict[tuple[int, int], Use] = {}
        self.edits: dict[int, tuple[ConfigEdit, tuple[Labels, ...]]] = {}  # by id of an operation
        self.calls: dict[int, Callable[[Any, Any, Sizes], Any]] = {}  # by id of a node
        self.factors: dict[int, Callable[[Sizes], float]] = {}  # by id of a variable
        self.tensors: dict[int, Axes] = {}  # by id of a KerasTensor
        self.kernels: list[tuple[keras.Variable, int]] = []  # how often each weight multiplies
        self.products: list[list[tuple[int, Labels]]] = []  # of activations: axis by axis
        self.parts: list[np.ndarray] = []  # what was cut out of an axis and must not become empty
        self.remarks: list[tuple[np.ndarray, str]] = []
        self.pins: list[tuple[np.ndarray, str]] = []
        self._ties: list[tuple[np.ndarray, np.ndarray]] = []

    def new(self, size: int) -> np.ndarray:
        """Returns the labels of `size` new channels."""
        self.count += size
        return np.arange(self.count - size, self.count)

    @overload
    def tie(self, first: np.ndarray, second: np.ndarray, reason: str) -> np.ndarray: ...
    @overload
    def tie(self, first: Labels, second: Labels, reason: str) -> Labels: ...

    def tie(self, first, second, reason):
        """Makes two axes of one length stand and fall together, index by index."""
        if first is None or second is None:
            return self.pin(first if second is None else second, reason)
        if first is not second:
            fixed = (first == PINNED) | (second == PINNED)
            if fixed.any():
                self.pin(np.concatenate([first[fixed], second[fixed]]), reason)
            self._ties.append((first[~fixed], second[~fixed]))
        return first

    def pin(self, labels: Labels, reason: str) -> None:
        """Keeps channels, and whatever is tied to them, for a reason."""
        if labels is not None and (labels := labels[labels != PINNED]).size:
            self.pins.append((labels, reason))

    def pin_all(self, call: Call, reason: str) -> list[Axes]:
        """Keeps every channel that enters the call; nothing is known of what comes out."""
        for tensor in call.inputs:
            for labels in tensor.labels:
                self.pin(labels, reason)
        # Weights that it shares with a layer that is known stay whole in both.
        for variable in getattr(call.operation, "variables", ()):
            for axis in range(len(variable.shape)):
                self.use(call, variable, axis, "each", None)
        return [Axes.fixed(shape) for shape in call.outputs]

    def remark(self, labels: Labels, reason: str) -> None:
        """Notes why removing these channels changes more than silencing them does."""
        if labels is not None and labels.any():
            self.remarks.append((labels, reason))

    @overload
    def use(
        self, call: Call, variable: Any, axis: int, role: str, labels: np.ndarray
    ) -> np.ndarray: ...
    @overload
    def use(self, call: Call, variable: Any, axis: int, role: str, labels: Labels) -> Labels: ...

    def use(self, call, variable, axis, role, labels):
        """Records a weight's axis that follows the labels; a shared weight ties all its uses.

        `role`: "out", the slice makes the channel; "in", it reads the channel; "each", it belongs
        to the channel on its way. Labels may be None: then the axis is fixed.
        """
        axis %= len(variable.shape)
        key = id(variable), axis
        if key in self.uses:
            reason = f"{describe(call)} is shared with a place where channels cannot go"
            return self.tie(self.uses[key].labels, labels, reason)
        recorded = np.full(variable.shape[axis], PINNED) if labels is None else labels
        self.uses[key] = Use(call.operation, call.path, variable, axis, role, recorded)
        return labels

    def edit(self, call: Call, change: ConfigEdit, *sizes: Labels) -> None:
        """Says how the configuration of an operation follows how many of the labels are kept.

        An operation that is called in two places has one configuration: the labels are tied.
        """
        before = self.edits.setdefault(id(call.operation), (change, sizes))
        for first, second in zip(before[1], sizes, strict=True):
            if first is not second:
                reason = f"{describe(call)} is shared with a place where channels cannot go"
                self.tie(first, second, reason)

    def multiply(self, kernel: Any, positions: Sequence[int | None]) -> None:
        """Counts multiplications: each weight of the kernel multiplies once at each position.

        A size that is known at run time only counts as 1.
        """
        self.kernels.append((kernel, math.prod(size or 1 for size in positions)))

    def contract(self, *axes: tuple[int | None, Labels]) -> None:
        """Counts multiplications of two activations: the product of the sizes of these axes."""
        self.products.append([(size or 1, labels) for size, labels in axes])

    def components(self) -> np.ndarray:
        """Returns for each label the number of the channel, tied labels being one channel."""
        pairs = [pair for pair in self._ties if pair[0].size]
        if not pairs:
            return np.arange(self.count)
        first, second = (np.concatenate(side) for side in zip(*pairs, strict=True))
        ties = coo_array((np.ones(first.size, bool), (first, second)), (self.count, self.count))
        return connected_components(ties, directed=False)[1]


Layer = Callable[[Trace, Call], Axes | list[Axes]]
_KNOWN: dict[type | str, Layer] = {}


def knows(*kinds: type | str) -> Callable[[Layer], Layer]:
    """Decorates the function that passes labels through a layer class or a `keras.ops` call."""

    def decorate(function: Layer) -> Layer:
        for kind in kinds:
            _KNOWN[kind] = function
        return function

    return decorate


def trace(model: keras.Model) -> Trace:
    """Returns how channels flow through a functional or Sequential model, nested ones included."""
    _require_graph(model)
    found = Trace()

    def call(node, path, args, kwargs):
        operation = node.operation
        inputs = [x for x in keras.tree.flatten((args, kwargs)) if isinstance(x, Axes)]
        shapes = [tuple(x.shape) for x in node.outputs]
        full_path = f"{path}/{operation.name}".lstrip("/")
        outputs = pass_on(found, Call(operation, full_path, inputs, args, kwargs, shapes, node))
        for tensor, axes in zip(node.outputs, outputs, strict=True):
            _record(found, tensor, axes)
        return outputs[0] if len(outputs) == 1 else outputs

    inputs = keras.tree.map_structure(lambda x: Axes.fixed(x.shape), graph.inputs_of(model))
    outputs = graph.interpret(model, inputs, call)
    for axes in keras.tree.flatten(outputs):
        for labels in axes.labels:
            found.pin(labels, "it is an output of the model")
    return found


def pass_on(found: Trace, call: Call) -> list[Axes]:
    """Returns the axes of a call's outputs; an operation that is not known pins its inputs."""
    function = _KNOWN.get(_kind(call.operation))
    if function is None:
        return found.pin_all(call, f"{describe(call)} is not known to keep channels apart")
    outputs = function(found, call)
    return outputs if isinstance(outputs, list) else [outputs]


def _kind(operation: Any) -> type | str:
    """Returns the class of a layer, exactly: a subclass may compute anything; the name of an op."""
    if type(operation).__module__.startswith("keras.src.ops."):
        return type(operation).__name__
    return type(operation)


def describe(call: Call) -> str:
    """Returns how reasons name the call: "Dense 'encoder/head'"."""
    return f"{type(call.operation).__name__} '{call.path}'"


def _record(found: Trace, tensor: Any, axes: Axes) -> None:
    """Remembers a tensor; one of a nested model that is called again has one shape for all."""
    before = found.tensors.setdefault(id(tensor), axes)
    if before is not axes:
        for first, second in zip(before.labels, axes.labels, strict=True):
            if first is not None or second is not None:
                found.tie(first, second, "its model is called where channels cannot go, too")


def _require_graph(model: Any) -> None:
    if not isinstance(model, keras.Model):
        raise InputError(f"A model must be a Keras 3 model. Received: {model!r}")
    for part in (model, *model._flatten_layers(include_self=False)):
        if isinstance(part, keras.Sequential):
            graph.as_graph(part)  # an error if it is not built
        elif isinstance(part, keras.Model) and not graph.is_graph(part):
            raise InputError(
                f"{type(part).__name__} '{part.name}' must be functional or Sequential, so that "
                "its channels can be followed. Make a subclassed model functional by calling its "
                "layers on a keras.Input: inputs = keras.Input(shape); "
                "model = keras.Model(inputs, model.call(inputs))"
            )


def count_kept(kept: np.ndarray) -> Sizes:
    """Returns the function that counts the labels of an axis that are kept (bool by label)."""
    return lambda labels: int(np.count_nonzero(kept[labels]))
