"""Which operator of a `.tflite` file computes which layer of the Keras model.

The model's graph is drawn with each operation inside a name scope of its own, `L12/`: the converter
joins the names of what it fuses, and the numbers stay readable. Tensors that have to be found again
are handed out as additional results through a cosine, which no converter fuses with anything; the
cosines are taken off again.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfcompress import graph, weights
from tfcompress.tflite import flatbuffer as fb
from tfcompress.tflite.compare import arrange
from tfcompress.tflite.operators import KERNELS

_MARK = re.compile(r"(?:^|;)L(\d+)/")


@dataclasses.dataclass(frozen=True, eq=False)
class Unit:
    """A layer, or another operation, that the model calls; what a rule may select.

    `layer_path` is the layer's in the user's model, `path` that of its kernel if it has one.
    `operation` is the layer of the user's model, None for an operation that is no layer.
    """

    path: str
    layer_path: str
    operation: Any = None


@dataclasses.dataclass(frozen=True, eq=False)
class Marked:
    """A float file and whose work its operators do.

    `content`: the file. `units`: for each operator of the main graph the unit that it belongs to,
    None where the names do not tell. `ranges`: by number of a tensor, the quantizer of the model
    (an object with `quantization()`) that rounds it.
    """

    content: bytes
    units: list[Unit | None]
    ranges: dict[int, Any]


def units(model: keras.Model) -> list[Unit]:
    """Returns the units of a model: one for each kernel, layer without kernels, operation."""
    flat, origins = graph.flatten(model)
    paths = weights.layer_paths(model)
    by_layer: dict[int, list[weights.Kernel]] = {}
    for kernel in weights.kernels(model):
        by_layer.setdefault(id(kernel.layer), []).append(kernel)
    found, seen = [], set()
    for node in graph.nodes(flat):
        origin = origins.get(node.operation.name)
        if id(origin or node.operation) in seen:
            continue
        seen.add(id(origin or node.operation))
        if origin is None:
            found.append(Unit(node.operation.name, node.operation.name))
            continue
        for layer in origin._flatten_layers():
            kernels = [kernel.path for kernel in by_layer.get(id(layer), ())]
            path = paths.get(id(layer), layer.name)
            found += [Unit(kernel, path, layer) for kernel in kernels or [path]]
    return found


def unmarked(content: bytes) -> Marked:
    """Returns a file whose operators belong to no unit: of a model that draws no Keras graph."""
    return Marked(content, [None] * len(fb.parse(content).subgraphs[0].operators or []), {})


class Marker:
    """Draws the graph of a model with marks, and reads them from the converted file."""

    def __init__(self, model: keras.Model, inference: keras.Model):
        """`inference` is `graph.exported(model)`."""
        self._inference = inference
        self._nodes = {id(node): number for number, node in enumerate(graph.nodes(inference))}
        self._origins = graph.flatten(model)[1]
        self._paths = weights.layer_paths(model)
        self._operations = [node.operation for node in graph.nodes(inference)]
        self._probed: list[Any] = []

    def function(self, specs: Sequence[tf.TensorSpec]) -> Any:
        """Returns the concrete function of the marked graph."""

        def call(*inputs):
            self._probed = []
            probes = []

            def step(node, path, args, kwargs):
                operation = node.operation
                origin = self._origins.get(operation.name)
                if is_range(origin):
                    x = keras.tree.flatten((args, kwargs))[0]
                    self._probed.append(origin)
                    probes.append(tf.cos(x))
                    return x
                if is_learned(origin):  # exported, it may wrap a layer for the converter's sake
                    operation = getattr(operation, "layer", operation)
                training = {} if not _takes_training(operation) else {"training": False}
                with tf.name_scope(f"L{self._nodes[id(node)]}"):
                    return operation(*args, **(kwargs | training))

            outputs = graph.interpret(self._inference, arrange(self._inference, inputs), step)
            return [*map(_handed_out, keras.tree.flatten(outputs)), *probes]

        function = tf.function(call, input_signature=list(specs), autograph=False)
        return function.get_concrete_function()

    def read(self, content: bytes) -> Marked:
        """Returns the converted file without the cosines, and what its marks say."""
        model = fb.parse(content)
        main = model.subgraphs[0]
        cosines = {
            int(operator.outputs[0]): int(operator.inputs[0])
            for operator in main.operators
            if fb.operator_name(model, operator) == "COS"
            and int(operator.outputs[0]) in set(map(int, main.outputs))
        }
        results = [cosines.get(int(i), int(i)) for i in main.outputs]
        count = len(results) - len(self._probed)
        ranges = dict(zip(results[count:], self._probed, strict=True))
        main.outputs = results[:count]
        main.operators = [o for o in main.operators if int(o.outputs[0]) not in cosines]
        model.signatureDefs = None  # it names the cosines
        found = [
            self._unit(
                fb.operator_name(model, operator),
                [fb.tensor_name(main.tensors[int(i)]) for i in operator.outputs],
            )
            for operator in main.operators
        ]
        return Marked(fb.pack(model), found, ranges)

    def _unit(self, operator: str, names: list[str]) -> Unit | None:
        """Returns the unit that an operator belongs to: of several, the one with a kernel."""
        scopes = [scope for name in names for scope in name.split(";") if _MARK.match(scope)]
        if not scopes:
            return None
        layers = [self._layer(scope) for scope in scopes]
        with_kernel = [u for u in layers if u.operation is not None and _has_kernel(u.operation)]
        return (with_kernel if operator in KERNELS and with_kernel else layers)[0]

    def _layer(self, scope: str) -> Unit:
        number, *inner = scope.split("/")
        name = self._operations[int(number[1:])].name
        origin = self._origins.get(name)
        if origin is None:
            return Unit(name, name, None)
        # A layer inside of a layer, as in attention, opens a scope of its own.
        segments = {re.sub(r"_\d+$", "", segment) for segment in inner} | set(inner)
        inside = () if is_learned(origin) else origin._flatten_layers(include_self=False)
        below = [x for x in inside if x.name in segments]
        layer = below[-1] if below else origin
        path = self._paths.get(id(layer), layer.name)
        return Unit(path, path, layer)


def is_learned(layer: Any) -> bool:
    """Returns whether the layer learned its kernel's `quantization()`: codes, scale, bits."""
    return hasattr(layer, "quantization") and hasattr(layer, "layer")


def is_range(layer: Any) -> bool:
    """Returns whether the layer rounds its input to a range, `quantization()`: low, high, bits."""
    return hasattr(layer, "quantization") and not hasattr(layer, "layer")


def _handed_out(tensor: Any) -> Any:
    """Returns what a result is handed out as: its own name would give way to the result's."""
    return tf.cos(tensor) if tensor.dtype == tf.float32 else tensor


def _takes_training(operation: Any) -> bool:
    return getattr(operation, "_call_has_training_arg", False)


def _has_kernel(layer: Any) -> bool:
    return any(isinstance(v, keras.Variable) and len(v.shape) >= 2 for v in layer.variables)
