"""Recurrent layers: their units are channels, in each gate and in the state."""

import keras
import numpy as np

from tfcompress.structured.layers.elementwise import ELEMENTWISE
from tfcompress.structured.trace import Axes, Call, Trace, describe, knows

layers = keras.layers
GATES = {layers.SimpleRNN: 1, layers.GRU: 3, layers.LSTM: 4}


@knows(*GATES)
def recurrent(trace: Trace, call: Call) -> Axes | list[Axes]:
    layer, (x, *states) = call.operation, unmasked(call)
    if not follows_units(layer):
        return trace.pin_all(call, f"{describe(call)} is stateful or has an activation of its own")
    trace.pin(x.labels[1], f"{describe(call)} steps along them")
    units = cell_units(trace, call, layer, x)
    for state in states:
        trace.tie(units, state.labels[-1], f"a state of {describe(call)} must stay")
    trace.edit(call, lambda config, size: {"units": size(units)}, units)
    return [Axes.on(shape, len(shape) - 1, units) for shape in call.outputs]


def unmasked(call: Call) -> list[Axes]:
    """Returns the tensors that enter, but for a mask: that one says which steps count."""
    mask = call.kwargs.get("mask")
    return [x for x in call.inputs if x is not mask]


def follows_units(layer: keras.layers.Layer) -> bool:
    """Returns whether the units of a recurrent layer can be told apart."""
    return (
        type(layer) in GATES
        and not layer.stateful
        and {layer.activation, getattr(layer, "recurrent_activation", layer.activation)}
        <= ELEMENTWISE
    )


def cell_units(trace: Trace, call: Call, layer: keras.layers.RNN, x: Axes) -> np.ndarray:
    """Returns the labels of a layer's units, having recorded them in the weights of its cell."""
    cell = layer.cell
    trace.use(call, cell.kernel, 0, "in", x.labels[-1])
    units = trace.use(call, cell.recurrent_kernel, 0, "in", trace.new(cell.units))
    for kernel in (cell.kernel, cell.recurrent_kernel):
        trace.multiply(kernel, x.shape[1:2])
    gates = np.tile(units, GATES[type(layer)])
    trace.use(call, cell.kernel, 1, "out", gates)
    trace.use(call, cell.recurrent_kernel, 1, "out", gates)
    if cell.use_bias:
        trace.use(call, cell.bias, -1, "out", gates)
    return units
