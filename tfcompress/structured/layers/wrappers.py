"""Layers around a layer: TimeDistributed and Bidirectional."""

import dataclasses
from typing import Any

import keras
import numpy as np

from tfcompress.structured.layers.recurrent import cell_units, follows_units, unmasked
from tfcompress.structured.trace import Axes, Call, Trace, describe, knows, pass_on

layers = keras.layers


@knows(layers.TimeDistributed)
def time_distributed(trace: Trace, call: Call) -> Axes | list[Axes]:
    (x, *more), layer = unmasked(call), call.operation.layer
    if more or isinstance(layer, keras.Model):
        return trace.pin_all(call, f"{describe(call)} holds a model or takes several tensors")
    trace.pin(x.labels[1], f"{describe(call)} steps along them")
    step = Axes((x.shape[0], *x.shape[2:]), (x.labels[0], *x.labels[2:]))
    shapes = [(shape[0], *shape[2:]) for shape in call.outputs]
    name = layer.name
    inner = dataclasses.replace(
        call, operation=layer, path=f"{call.path}/{name}", inputs=[step], outputs=shapes
    )
    before = len(trace.kernels)
    outputs = pass_on(trace, inner)
    steps = x.shape[1] or 1
    trace.kernels[before:] = [(kernel, n * steps) for kernel, n in trace.kernels[before:]]
    change, labels = trace.edits.get(id(layer), (lambda config, size: {}, ()))

    def edit(config, size):
        wrapped = config["layer"]
        return {"layer": _unbuilt(wrapped, change(wrapped["config"], size))}

    trace.edit(call, edit, *labels)
    return [
        Axes(shape, (step.labels[0], None, *step.labels[1:]))
        for step, shape in zip(outputs, call.outputs, strict=True)
    ]


@knows(layers.Bidirectional)
def bidirectional(trace: Trace, call: Call) -> Axes | list[Axes]:
    wrapper, x = call.operation, call.inputs[0]
    both = wrapper.forward_layer, wrapper.backward_layer
    alone = len(unmasked(call)) == len(call.outputs) == 1
    if not alone or not all(map(follows_units, both)):
        return trace.pin_all(call, f"{describe(call)} has states, or layers that are not known")
    trace.pin(x.labels[1], f"{describe(call)} steps along them")
    units = [cell_units(trace, call, layer, x) for layer in both]
    # Both directions are made from one configuration.
    trace.tie(units[0], units[1], f"both directions of {describe(call)} are equally wide")

    def edit(config, size):
        parts = {key: config[key] for key in ("layer", "backward_layer") if config.get(key)}
        return {key: _unbuilt(part, {"units": size(units[0])}) for key, part in parts.items()}

    trace.edit(call, edit, units[0])
    labels = np.concatenate(units) if wrapper.merge_mode == "concat" else units[0]
    return Axes.on(call.outputs[0], len(call.outputs[0]) - 1, labels)


def _unbuilt(wrapped: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Returns the changed configuration of a wrapped layer, without the shape it was built for."""
    kept = {key: value for key, value in wrapped.items() if key != "build_config"}
    return kept | {"config": wrapped["config"] | changes}
