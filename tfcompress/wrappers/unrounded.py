"""The plain model inside of a quantization-aware one."""

from typing import Any

import keras

from tfcompress import graph
from tfcompress.structured.fold import weights_after
from tfcompress.wrappers.fake_quantize import FakeQuantize, OnGrid
from tfcompress.wrappers.operators import InverseRoot
from tfcompress.wrappers.quantized_layer import KeptFloat, QuantizedLayer, built_copy


def is_quantize_aware(model: keras.Model) -> bool:
    """Returns whether the model was made by `quantize_aware`."""
    return any(isinstance(layer, FakeQuantize) for layer in model._flatten_layers())


def unrounded(model: keras.Model) -> keras.Model:
    """Returns the model of plain layers, with the same weights, that a `quantize_aware` model
    rounds; layer names stay, `model` too."""
    made: dict[int, Any] = {}

    def call(node, copy, *args, **kwargs):
        operation = node.operation
        if isinstance(operation, FakeQuantize | OnGrid):
            return args[0]
        if isinstance(operation, InverseRoot):
            return copy(args[0])
        if not isinstance(operation, QuantizedLayer | KeptFloat):
            return copy(*args, **kwargs)
        if id(operation) not in made:
            made[id(operation)] = _plain(operation)
        return made[id(operation)](args[0])

    return graph.rebuild(graph.functional(model), call)


def _plain(wrapper: QuantizedLayer | KeptFloat) -> keras.layers.Layer:
    plain, norm = built_copy(wrapper.layer), getattr(wrapper, "norm", None)
    if norm is not None:
        plain.set_weights(weights_after(wrapper.layer, norm))
    return plain


def simulated(model: keras.Model) -> dict[str, keras.KerasTensor]:
    """Returns, by name of each operation of a `quantize_aware` model, its output on its grid."""
    readers = graph.consumers(model)

    def rounded(tensor: Any) -> Any:
        below = readers[id(tensor)]
        if below and all(n and isinstance(n.operation, FakeQuantize | OnGrid) for n in below):
            return below[0].outputs[0]
        return tensor

    return {
        node.operation.name: rounded(node.outputs[0])
        for node in graph.nodes(model)
        if not isinstance(node.operation, FakeQuantize | OnGrid)
    }
