"""Layer pruning: residual branches and shape-preserving layers go where the loss allows it."""

import dataclasses
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfcompress import graph, rules, weights
from tfcompress.errors import InputError, require
from tfcompress.structured import evaluation

Pair = tuple[Any, Any]  # two tensors of the flat graph: one, and an earlier one of its shape
Bypasses = Mapping[int, Any]  # by id of a tensor of the flat graph, the one that takes its place


@dataclasses.dataclass(frozen=True)
class Drop:
    """One step: `layers` by path that go together, `parameters` the weights that go with them,
    `loss` of the model without them and without all that went before."""

    layers: tuple[str, ...]
    parameters: int
    loss: float


@dataclasses.dataclass(frozen=True)
class DroppedLayers:
    """What `drop_layers` did: `loss` of the model before, `limit` that the loss must not pass,
    `dropped` in the order in which they went, and `kept`, what would go next, cheapest first: its
    loss is above the limit. `str()` is a table."""

    loss: float
    limit: float
    dropped: tuple[Drop, ...]
    kept: tuple[Drop, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as numbers, strings, lists and dicts, fit for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        rows = [f"loss {self.loss:.4g}, limit {self.limit:.4g}"]
        for title, drops in (("dropped", self.dropped), ("kept", self.kept)):
            rows += [
                f"{title:8}{drop.loss:10.4g}{drop.parameters:12,}  {', '.join(drop.layers)}"
                for drop in drops
            ]
        return "\n".join(rows)


def drop_layers(
    model: keras.Model,
    data: Any,
    max_loss_increase: float | None = 0.01,
    loss: Any = None,
    *,
    rules: Sequence[Mapping[str, Any]] = (),
    batches: int | None = 16,
    batch_size: int = 64,
) -> keras.Model:
    """Returns a new model without the layers that the loss can do without, one after the other.

    `model` stays as it was; the new one is flat (`graph.functional`), its layers keep their names
    and weights, it has to be compiled and may be trained on. Its attribute `dropped_layers`, a
    `DroppedLayers`, says what went and stayed at which loss (it is not saved with the model).

    What may go, each replaced by the identity:

    * a branch of an Add of two tensors of one shape: y = a + b becomes y = a, and all that only b
      needed goes;
    * a layer with a kernel whose output has its input's shape, alone or with the normalization,
      activation and dropout behind it.

    All of them are tried, each by the loss of the whole model without it; the one with the lowest
    loss goes, for good; then all the others are measured again, for their effects depend on one
    another. It ends when nothing can go within the limit, loss + max_loss_increase * |loss|, of the
    loss that the model has at first: an increase relative to the model's own loss. With n
    candidates that is up to n (n + 1) / 2 evaluations.

    What the model puts out itself, layers called in several places, and what would cut an input
    off, stay.

    Args:
        data: (x, y) and the other forms of `tfcompress.structured.evaluation.batches`.
        max_loss_increase: at least 0; 0.01 lets the loss grow from 0.500 to 0.505. None: nothing
            goes but what rules drop.
        loss: as `compile` takes it; None: the compiled one.
        rules: mappings {"layers": REGEX, "skip": REASON} for layers that stay, or
            {"layers": REGEX, "drop": True} for those that go first, whatever the loss: all that
            match as one, with the fewest others. REGEX matches the whole path.
        batches: at most so many batches of the data are read, and kept in memory; None: all.
        batch_size: rows of a batch where `data` is arrays.

    Raises:
        InputError: no branch or layer that could go, or none that takes with it all that a rule
            drops; a limit below 0; data that does not fit.

    Source: Elkerdawy et al. 2020, "To Filter Prune, or to Layer Prune, That Is The Question", for
    whole layers; Veit et al. 2016, "Residual Networks Behave Like Ensembles of Relatively Shallow
    Networks", for why branches can go.

        small = tfc.drop_layers(model, (x_train, y_train), max_loss_increase=0.05)
        print(small.dropped_layers)
    """
    most = 0.0 if max_loss_increase is None else max_loss_increase
    require(
        isinstance(most, int | float) and math.isfinite(most) and most >= 0,
        "max_loss_increase of drop_layers",
        "must be a number of at least 0",
        max_loss_increase=max_loss_increase,
    )
    flat, origins = graph.flatten(model)
    search = _Search(flat, weights.origin_paths(model, origins))
    kept, named = _ruled(search, rules)
    require(
        search.options({}, kept),
        f"Model '{model.name}'",
        "must have a branch of an Add or a shape-preserving layer with a kernel for drop_layers, "
        "not shared, not its output" + (", not skipped by a rule" if kept else ""),
    )
    measure = _Measure(flat, search.pairs, model, loss)
    read = list(evaluation.batches(data, batch_size, batches))
    start = measure({}, read)
    limit = start + most * abs(start)
    bypasses, dropped = _named(search, kept, named, measure, read)
    rest: tuple[Drop, ...] = ()
    if max_loss_increase is not None:
        bypasses, further, rest = _greedy(search, kept, bypasses, measure, read, limit)
        dropped += further
    report = DroppedLayers(start, limit, dropped, rest)
    small = _without(flat, bypasses, search.live(bypasses))
    small.dropped_layers = report
    return small


def _ruled(
    search: "_Search", given: Sequence[Mapping[str, Any]]
) -> tuple[set[str], list[set[str]]]:
    """Returns the paths that stay, and for each rule that drops those that go."""
    places = [rules.Place(layer.path, layer.path) for layer in search.layers.values()]
    resolved = rules.resolve(given, places, ["drop"], kind="layer")
    kept = {path for path, rule in resolved.items() if "skip" in rule}
    named = []
    for rule in given:
        if "drop" in rule:
            drop = rule["drop"]
            require(drop is True, "drop of a rule", "must be True, or left out", drop=drop)
            pattern = re.compile(rule["layers"])
            named.append({p for p, r in resolved.items() if "drop" in r and pattern.fullmatch(p)})
    return kept, [paths for paths in named if paths]  # none where later rules hold for them


def _named(
    search: "_Search",
    kept: Collection[str],
    named: Sequence[set[str]],
    measure: "_Measure",
    read: Sequence[evaluation.Batch],
) -> tuple[Bypasses, tuple[Drop, ...]]:
    """Drops, for each set of paths, what takes all of it along and the fewest others."""
    bypasses: Bypasses = {}
    dropped: list[Drop] = []
    for paths in named:
        able = [
            option
            for option in search.options(bypasses, kept)
            if paths <= {layer.path for layer in option.gone}
        ]
        require(
            able,
            "A rule of drop_layers that drops",
            "must name layers of one branch of an Add, or one shape-preserving layer with a kernel",
            layers=sorted(paths),
        )
        option = min(able, key=lambda option: len(option.gone))
        bypasses = option.after(bypasses)
        dropped.append(option.measured(_loss(measure, bypasses, read)))
    return bypasses, tuple(dropped)


def _greedy(
    search: "_Search",
    kept: Collection[str],
    bypasses: Bypasses,
    measure: "_Measure",
    read: Sequence[evaluation.Batch],
    limit: float,
) -> tuple[Bypasses, tuple[Drop, ...], tuple[Drop, ...]]:
    """Returns the bypasses with those that the limit allows, what they drop, and what is next."""
    dropped: list[Drop] = []
    while True:
        measured = []
        for option in search.options(bypasses, kept):
            loss = _loss(measure, option.after(bypasses), read)
            measured.append((option, option.measured(loss)))
        measured.sort(key=lambda pair: (pair[1].loss, -pair[1].parameters))
        if not measured or measured[0][1].loss > limit:
            return bypasses, tuple(dropped), tuple(drop for _, drop in measured)
        option, drop = measured[0]
        bypasses = option.after(bypasses)
        dropped.append(drop)


def _loss(measure: "_Measure", bypasses: Bypasses, read: Sequence[evaluation.Batch]) -> float:
    try:
        return measure(bypasses, read)
    except InputError:  # not finite: the model read this data without it at first
        return math.inf


def _pairs(flat: keras.Model) -> list[Pair]:
    """Returns each tensor with each earlier one that could take its place."""
    readers, calls = graph.consumers(flat), graph.calls(flat)
    kernels = {id(kernel.layer) for kernel in weights.kernels(flat)}
    pairs = []
    for node in graph.nodes(flat):
        tensor = node.outputs[0]
        if None in readers[id(tensor)] or not _same_shape(node):
            continue
        if type(node.operation).__name__ == "Add" and len(node.input_tensors) == 2:
            pairs += [(tensor, source) for source in node.input_tensors]
        elif _has_kernel(node, kernels) and _sources(node) == 1 and calls[id(node.operation)] == 1:
            source, last = node.input_tensors[0], _end_of_chain(node, readers, calls, kernels)
            pairs.append((tensor, source))
            if last is not tensor:
                pairs.append((last, source))
    return pairs


def _end_of_chain(node: Any, readers: Any, calls: Any, kernels: Collection[int]) -> Any:
    """Returns the output of the last layer that belongs to this one: no kernel, same shape."""
    while True:
        tensor = node.outputs[0]
        below = readers[id(tensor)]
        if len(below) != 1 or below[0] is None:
            return tensor
        node = below[0]
        if (
            not _same_shape(node)
            or _sources(node) != 1
            or _has_kernel(node, kernels)
            or calls[id(node.operation)] > 1
            or None in readers[id(node.outputs[0])]
        ):
            return tensor


def _same_shape(node: Any) -> bool:
    """Whether all tensors in and out are of one known shape and dtype."""
    tensors = [*node.input_tensors, *node.outputs]
    shapes = {(tuple(tensor.shape[1:]), tensor.dtype) for tensor in tensors}
    return len(node.outputs) == 1 and len(shapes) == 1 and None not in next(iter(shapes))[0]


def _sources(node: Any) -> int:
    """How many different tensors go in: attention may read one three times."""
    return len({id(tensor) for tensor in node.input_tensors})


def _has_kernel(node: Any, kernels: Collection[int]) -> bool:
    operation = node.operation
    return isinstance(operation, keras.layers.Layer) and any(
        id(layer) in kernels for layer in operation._flatten_layers()
    )


@dataclasses.dataclass(frozen=True)
class _Layer:
    """A layer of the flat model: its path in the user's model, and the number of its weights."""

    path: str
    parameters: int


@dataclasses.dataclass(frozen=True)
class _Option:
    """A tensor that an earlier one may replace, and the layers that go if it does."""

    tensor: Any
    source: Any
    gone: tuple[_Layer, ...]

    def after(self, bypasses: Bypasses) -> Bypasses:
        return {**bypasses, id(self.tensor): self.source}

    def measured(self, loss: float) -> Drop:
        paths = tuple(layer.path for layer in self.gone)
        return Drop(paths, sum(layer.parameters for layer in self.gone), loss)


class _Search:
    """Knows what a flat model still computes when tensors are bypassed."""

    def __init__(self, flat: keras.Model, paths: Mapping[str, str]):
        self._flat = flat
        self._producers = {id(x): node for node in graph.nodes(flat) for x in node.outputs}
        self.pairs = _pairs(flat)
        self.layers = {
            id(layer): _Layer(paths[layer.name], layer.count_params())
            for layer in flat.layers
            if not isinstance(layer, keras.layers.InputLayer)
        }

    def live(self, bypasses: Bypasses) -> set[int]:
        """Returns the ids of the nodes, operations and inputs that the outputs still need."""
        found: set[int] = set()
        waiting = list(self._flat.outputs)
        while waiting:
            tensor = waiting.pop()
            node = self._producers.get(id(tensor))
            if id(tensor) in bypasses:
                waiting.append(bypasses[id(tensor)])
            elif node is None:
                found.add(id(tensor))
            elif id(node) not in found:
                found |= {id(node), id(node.operation)}
                waiting.extend(node.input_tensors)
        return found

    def options(self, bypasses: Bypasses, kept: Collection[str]) -> list[_Option]:
        """Returns what could go next: weights with it, but no layer of `kept` and no input."""
        now = self.live(bypasses)
        inputs = {id(tensor) for tensor in self._flat.inputs} & now
        found = []
        for tensor, source in self.pairs:
            if id(tensor) in bypasses or id(self._producers[id(tensor)]) not in now:
                continue
            then = self.live({**bypasses, id(tensor): source})
            gone = tuple(x for key, x in self.layers.items() if key in now and key not in then)
            stay = any(layer.path in kept for layer in gone)
            if any(layer.parameters for layer in gone) and not stay and inputs <= then:
                found.append(_Option(tensor, source, gone))
        return found


class Switch(keras.layers.Layer):
    """Passes the first tensor on, or the second once the weight `bypassed` is 1."""

    def build(self, *shapes: Any) -> None:
        self.bypassed = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, tensor: Any, source: Any) -> Any:
        return keras.ops.where(self.bypassed > 0.5, source, tensor)


class _Measure:
    """The loss under any choice of bypasses: one model with a switch at each, compiled once."""

    def __init__(self, flat: keras.Model, pairs: Sequence[Pair], model: keras.Model, loss: Any):
        self._switches = {(id(tensor), id(source)): Switch() for tensor, source in pairs}
        switched = graph.rebuild(flat, self._call(pairs))
        # The loss in the absence of one is that with which the user's model was compiled.
        switched._compile_config = getattr(model, "_compile_config", None)
        self._evaluation = evaluation.Evaluation(switched, loss)

    def __call__(self, bypasses: Bypasses, read: Sequence[evaluation.Batch]) -> float:
        replaced = {
            id(switch.bypassed): np.float32(tensor in bypasses and id(bypasses[tensor]) == source)
            for (tensor, source), switch in self._switches.items()
        }
        return self._evaluation(read, replaced)

    def _call(self, pairs: Sequence[Pair]) -> graph.Call:
        seen: dict[int, Any] = {}

        def call(node: Any, copy: Any, *args: Any, **kwargs: Any) -> Any:
            _see(seen, node, args, kwargs)
            y = copy(*args, **kwargs)
            for tensor, source in pairs:
                if tensor is node.outputs[0]:
                    y = self._switches[id(tensor), id(source)](y, seen[id(source)])
            return y

        return call


def _without(flat: keras.Model, bypasses: Bypasses, live: Collection[int]) -> keras.Model:
    seen: dict[int, Any] = {}

    def call(node: Any, copy: Any, *args: Any, **kwargs: Any) -> Any:
        _see(seen, node, args, kwargs)
        if id(node.outputs[0]) in bypasses:
            return seen.get(id(bypasses[id(node.outputs[0])]))
        return copy(*args, **kwargs) if id(node) in live else None

    return graph.rebuild(flat, call)


def _see(seen: dict[int, Any], node: Any, args: Any, kwargs: Any) -> None:
    """Remembers which tensor of the new graph stands for which of the old one."""
    old = keras.tree.flatten((node.arguments.args, node.arguments.kwargs))
    for before, now in zip(old, keras.tree.flatten((args, kwargs)), strict=True):
        if isinstance(now, keras.KerasTensor):  # None: gone
            seen[id(before)] = now
