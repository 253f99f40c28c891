"""A Keras model as one flat graph: nested models inlined, layers copied, calls rewritten.

Every function returns a new model and leaves the one that it was given as it was.

The nodes and edges are Keras' own: a node is one call of an operation (a layer, or the operation
behind `x + y`), an edge is a `keras.KerasTensor`.
"""

import collections
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import keras

from tfcompress.errors import InputError
from tfcompress.weights import Names

Operation = Any  # keras.Operation: a layer, or what keras.ops records in a functional model
Call = Callable[..., Any]  # (node, copy, *args, **kwargs) -> outputs of the new graph
Step = Callable[[Any, str, Any, Any], Any]  # (node, path, args, kwargs) -> outputs
Changes = Callable[[Operation], dict[str, Any]]  # of an operation's configuration


def functional(model: keras.Model) -> keras.Model:
    """Returns a copy of `model` as one flat functional model; `model` stays as it was.

    Nested models (Sequential, functional, and subclassed ones whose `call` runs on symbolic
    tensors) are inlined; shared layers stay shared; weights, trainability, dtype policies and the
    structure of inputs and outputs are kept. A layer keeps its name where that is unique, and gets
    the names of the models around it as prefix where it is not (`encoder_dense`).

    Raises:
        InputError: the model is not built, or a layer cannot be copied from its config, or a
            subclassed model's `call` needs values where a graph only has shapes.

    >>> inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="dense")])
    >>> outer = keras.Sequential([keras.Input((4,)), inner, keras.layers.Dense(2, name="dense_1")])
    >>> [layer.name for layer in functional(outer).layers[1:]]
    ['dense', 'dense_1']
    """
    return flatten(model)[0]


def flatten(model: keras.Model) -> tuple[keras.Model, dict[str, keras.layers.Layer]]:
    """Returns `functional(model)` and, by name of each of its layers, the layer it was copied from.

    The second part connects the flat model with paths and rules that speak about the user's model.
    """
    copies = _Copies()
    inputs = new_inputs(model)
    outputs = _inline(model, inputs, copies)
    flat = keras.Model(inputs, outputs, name=model.name)
    copies.load_weights()
    return flat, {copies.of(layer).name: layer for layer in copies.layers()}


def rebuild(model: keras.Model, call: Call | None = None, inputs: Any = None) -> keras.Model:
    """Returns a new flat model, made call by call; `model`, a flat functional model, stays.

    For each node, in topological order, `call(node, copy, *args, **kwargs)` returns the outputs in
    the new graph; `copy` is the new operation with the old one's configuration and weights (one per
    operation, so that shared layers stay shared), `args` and `kwargs` hold tensors of the new
    graph. Without `call` every operation is copied. `inputs` are those of the new model, in the
    structure of the old one's; None: like the old one's.

    Example, a model without its dropout:

        rebuild(model, lambda node, copy, *args, **kwargs:
                args[0] if isinstance(copy, keras.layers.Dropout) else copy(*args, **kwargs))
    """
    call = call or (lambda node, copy, *args, **kwargs: copy(*args, **kwargs))
    return _rebuild(model, call, _Copies(), inputs)


def _rebuild(model: keras.Model, call: Call, copies: "_Copies", inputs: Any = None) -> keras.Model:
    inputs = new_inputs(model) if inputs is None else inputs
    values = _values(model, inputs)
    for node in nodes(model):
        args, kwargs = _fill_in(node, values)
        outputs = call(node, copies.of(node.operation), *args, **kwargs)
        _record(node, outputs, values)
    outputs = _outputs(model, values)
    _name_apart(outputs, copies)
    new = keras.Model(inputs, outputs, name=model.name)
    copies.load_weights()
    return new


def _name_apart(outputs: Any, copies: "_Copies") -> None:
    """Gives new operations another name where Keras chose one that a copy has, too.

    Keras counts what it named in this process; a loaded model may have those names already.
    """
    found: dict[int, Operation] = {}
    pending, seen = keras.tree.flatten(outputs), set()
    while pending:
        operation, index, _ = pending.pop()._keras_history
        if (id(operation), index) not in seen:
            seen.add((id(operation), index))
            found[id(operation)] = operation
            pending += operation._inbound_nodes[index].input_tensors
    names, kept = Names(), copies.made()
    for operation in sorted(found.values(), key=lambda x: id(x) not in kept):
        operation.name = names.unique(operation.name)


def exported(model: keras.Model, changes: Changes = lambda operation: {}) -> keras.Model:
    """Returns the flat model that computes at inference what `model` does, for a converter.

    A layer that carries training apparatus defines `exported() -> Layer`: a built layer, with its
    weights, that computes the same from the first input alone. Dropout and noise go; layers that
    compute in float16 to train faster compute in float32. `changes`: further ones, by operation, to
    its configuration.
    """
    replaced: dict[int, Any] = {}

    def call(node, copy, *args, **kwargs):
        operation = node.operation
        if is_identity(operation):
            return args[0]
        if hasattr(operation, "exported"):
            if id(operation) not in replaced:
                replaced[id(operation)] = operation.exported()
            return replaced[id(operation)](keras.tree.flatten((args, kwargs))[0])
        return copy(*args, **kwargs)

    copies = _Copies(lambda operation: in_float32(operation) | changes(operation))
    return _rebuild(functional(model), call, copies)


def nodes(model: keras.Model) -> list[Any]:
    """Returns the calls of a functional model in topological order, without the inputs."""
    by_depth = model._nodes_by_depth
    ordered = itertools.chain.from_iterable(by_depth[d] for d in sorted(by_depth, reverse=True))
    return [node for node in ordered if node.operation is not None and not node.is_input]


def consumers(model: keras.Model) -> Mapping[int, list[Any]]:
    """Returns, by `id` of a tensor, the nodes that read it; an output of the model counts as None.

    A tensor that nothing reads has the empty list.
    """
    readers: dict[int, list[Any]] = collections.defaultdict(list)
    for node in nodes(model):
        for tensor in node.input_tensors:
            readers[id(tensor)].append(node)
    for tensor in model.outputs:
        readers[id(tensor)].append(None)
    return readers


def calls(model: keras.Model) -> Mapping[int, int]:
    """Returns, by `id` of an operation, how often the functional model calls it."""
    return collections.Counter(id(node.operation) for node in nodes(model))


def is_identity(operation: Operation) -> bool:
    """Returns whether the operation passes its input on unchanged at inference."""
    layers = keras.layers
    return isinstance(
        operation,
        layers.Dropout
        | layers.SpatialDropout1D
        | layers.SpatialDropout2D
        | layers.SpatialDropout3D
        | layers.GaussianNoise
        | layers.GaussianDropout
        | layers.AlphaDropout
        | layers.ActivityRegularization
        | layers.Identity,
    ) or (
        type(operation) is layers.Activation
        and getattr(operation.activation, "__name__", "") == "linear"
    )


def copy_operation(operation: Operation, **changes: Any) -> Operation:
    """Returns a new, unbuilt operation with the same configuration, `changes` applied."""
    try:
        return type(operation).from_config(operation.get_config() | changes)
    except (NotImplementedError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{type(operation).__name__} '{operation.name}' must be rebuilt from its config, "
            f"which fails: {reason}"
        ) from error


def in_float32(operation: Operation) -> dict[str, str]:
    """Returns the change to a layer's or a cast's config that undoes mixed precision."""
    is_cast = type(operation).__name__ == "Cast"
    dtype = getattr(operation, "dtype" if is_cast else "compute_dtype", None)
    return {"dtype": "float32"} if dtype in ("float16", "bfloat16") else {}


def refresh(operation: Operation) -> None:
    """Has a layer whose weights were set compute anew what it computes from them beforehand."""
    layers = operation._flatten_layers() if isinstance(operation, keras.layers.Layer) else ()
    for layer in layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()  # it keeps the adapted mean and variance a second time


class _Copies:
    """One new operation for each old one, under a unique name, with the given changes."""

    def __init__(self, changes: Changes = lambda operation: {}):
        self._changes = changes
        self._pairs: dict[int, tuple[Operation, Operation]] = {}
        self._names = Names()

    def of(self, operation: Operation, prefix: str = "") -> Operation:
        if id(operation) not in self._pairs:
            name = self._unique(operation.name, prefix)
            changes = self._changes(operation)
            if name != operation.name:
                changes["name"] = name
            self._pairs[id(operation)] = (operation, copy_operation(operation, **changes))
        return self._pairs[id(operation)][1]

    def made(self) -> set[int]:
        """Returns the `id` of each new operation."""
        return {id(new) for _, new in self._pairs.values()}

    def layers(self) -> list[keras.layers.Layer]:
        return [old for old, _ in self._pairs.values() if isinstance(old, keras.layers.Layer)]

    def load_weights(self) -> None:
        for old, new in self._pairs.values():
            if isinstance(old, keras.layers.Layer) and new.built and old.weights:
                new.set_weights(old.get_weights())
                refresh(new)

    def _unique(self, name: str, prefix: str) -> str:
        return self._names.unique(f"{prefix}_{name}" if prefix and name in self._names else name)


def _inline(model: Any, inputs: Any, copies: _Copies) -> Any:
    """Returns the outputs of `model` on `inputs`, calling copies of its layers."""

    def call(node, path, args, kwargs):
        return copies.of(node.operation, prefix=path.replace("/", "_"))(*args, **kwargs)

    return interpret(model, inputs, call)


def interpret(model: keras.Model, inputs: Any, call: Step, inside: bool = True) -> Any:
    """Returns what `model` makes of `inputs` when `call` stands in for each of its operations.

    The inputs may be anything that is not a list, tuple or mapping: tensors of another graph, or
    what is known about tensors. For each node, in topological order,
    `call(node, path, args, kwargs)` returns what takes the place of the node's outputs; `path`
    names the nested models around it ("" at the top, "encoder/block" further down), `args` and
    `kwargs` are the call's, with the tensors replaced. `inside` False: a nested model is one
    operation like any other.
    """
    return _interpret(model, inputs, call, inside, path="")


def _interpret(model: Any, inputs: Any, call: Step, inside: bool, path: str) -> Any:
    model = as_graph(model)
    values = _values(model, inputs)
    for node in nodes(model):
        args, kwargs = _fill_in(node, values)
        operation = node.operation
        if inside and isinstance(operation, keras.Model):
            # Its `training` argument needs no care: in `fit` Keras overrides it.
            below = f"{path}/{operation.name}".lstrip("/")
            outputs = _interpret(operation, args[0] if args else kwargs, call, inside, below)
        else:
            outputs = call(node, path, args, kwargs)
        _record(node, outputs, values)
    return _outputs(model, values)


def is_graph(model: keras.Model) -> bool:
    """Returns whether the model is functional, or Sequential and built."""
    return hasattr(model, "_nodes_by_depth") or (
        isinstance(model, keras.Sequential) and model.built
    )


def inputs_of(model: keras.Model) -> Any:
    """Returns the symbolic inputs of a functional or Sequential model, in their structure."""
    return _unpacked(as_graph(model)._inputs_struct)


def as_graph(model: keras.Model) -> keras.Model:
    """Returns `model` as a functional one that may share its layers with it."""
    if isinstance(model, keras.Sequential):
        if not model.built:
            raise _unbuilt(model)
        model = model._functional
    if hasattr(model, "_nodes_by_depth"):
        return model
    return _trace(model)


def _trace(model: keras.Model) -> keras.Model:
    """Returns the graph that a subclassed model's `call` draws on symbolic inputs.

    The calls add nodes to the model's own layers; they are taken off again.
    """
    inputs = new_inputs(model)
    layers = [layer for layer in model._flatten_layers() if layer is not model]
    before = [(x, len(x._inbound_nodes), len(x._outbound_nodes)) for x in layers]
    training = {"training": False} if "training" in model._call_signature.parameters else {}
    try:
        outputs = model.call(inputs, **training)
        return keras.Model(inputs, outputs, name=model.name)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise _no_graph(model, reason) from error
    finally:
        for layer, inbound, outbound in before:
            del layer._inbound_nodes[inbound:]
            del layer._outbound_nodes[outbound:]


def new_inputs(model: keras.Model, tensors: Any = None) -> Any:
    """Returns new symbolic inputs in the structure in which `model` takes its own.

    With `tensors`, in that structure, the inputs take their sizes, save those that were left open.
    """
    if isinstance(model, keras.Sequential) and model.built:
        model = model._functional
    if hasattr(model, "_inputs_struct"):
        structure = _unpacked(model._inputs_struct)
        old = keras.tree.flatten(structure)
        given = old if tensors is None else keras.tree.flatten(tensors)
        new = [_like(x, size.shape) for x, size in zip(old, given, strict=True)]
        return keras.tree.pack_sequence_as(structure, new)
    if not model.built:
        raise _unbuilt(model)
    shape = (model.get_build_config() or {}).get("input_shape")
    if shape is None:
        raise _no_graph(model, "Keras could not record the shape of its inputs")
    dtype = model.input_dtype if keras.backend.is_float_dtype(model.input_dtype) else None
    return keras.tree.map_shape_structure(
        lambda s: keras.Input(batch_shape=(None, *s[1:]), dtype=dtype), shape
    )


def _like(x: keras.KerasTensor, sizes: Any) -> keras.KerasTensor:
    name = x._keras_history.operation.name
    shape = [old if old is None else new for old, new in zip(x.shape, sizes, strict=True)]
    return keras.Input(batch_shape=shape, dtype=x.dtype, sparse=x.sparse, name=name)


def _unpacked(structure: Any) -> Any:
    """Returns the one tensor of a list of one: Keras warns about the list, not about the tensor."""
    if isinstance(structure, list | tuple) and len(structure) == 1:
        return structure[0]
    return structure


def _no_graph(model: keras.Model, reason: str) -> InputError:
    return InputError(
        f"{type(model).__name__} '{model.name}' must be a functional or Sequential model, or one "
        f"with one input whose `call` runs on symbolic tensors: {reason}"
    )


def _unbuilt(model: keras.Model) -> InputError:
    return InputError(
        f"Model '{model.name}' must be built: call it once on a batch, or give it a keras.Input."
    )


def _values(model: keras.Model, inputs: Any) -> dict[int, Any]:
    return {
        id(old): new for old, new in zip(model._inputs, keras.tree.flatten(inputs), strict=True)
    }


def _outputs(model: keras.Model, values: Mapping[int, Any]) -> Any:
    return _unpacked(keras.tree.map_structure(lambda x: values[id(x)], model._outputs_struct))


def _fill_in(node: Any, values: Mapping[int, Any]) -> tuple[Any, Any]:
    def value(x):
        # A converter's graph lacks tensors that only training needs: they become None.
        return values.get(id(x)) if isinstance(x, keras.KerasTensor) else x

    return keras.tree.map_structure(value, (node.arguments.args, node.arguments.kwargs))


def _record(node: Any, outputs: Any, values: dict[int, Any]) -> None:
    values.update(
        (id(old), new) for old, new in zip(node.outputs, keras.tree.flatten(outputs), strict=False)
    )
