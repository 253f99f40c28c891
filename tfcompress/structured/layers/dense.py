"""Layers that multiply by a matrix: Dense, EinsumDense, Embedding."""

import re
import string

import keras
import numpy as np

from tfcompress.structured.layers.elementwise import after_activation
from tfcompress.structured.trace import Axes, Call, Trace, describe, knows

layers = keras.layers


def plain_weights(layer: keras.layers.Layer) -> bool:
    """Returns whether the layer computes with just its kernel, float and without LoRA's factors."""
    return (
        not getattr(layer, "lora_enabled", False)
        and getattr(layer, "quantization_mode", None) is None
    )


@knows(layers.Dense)
def dense(trace: Trace, call: Call) -> Axes | list[Axes]:
    layer, (x,) = call.operation, call.inputs
    if not plain_weights(layer):
        return trace.pin_all(call, f"{describe(call)} has quantized weights or LoRA factors")
    units = trace.new(layer.units)
    trace.use(call, layer.kernel, 0, "in", x.labels[-1])
    units = trace.use(call, layer.kernel, 1, "out", units)
    if layer.use_bias:
        trace.use(call, layer.bias, 0, "out", units)
    trace.edit(call, lambda config, size: {"units": size(units)}, units)
    shape = call.outputs[0]
    trace.multiply(layer.kernel, shape[1:-1])
    return after_activation(trace, call, Axes(shape, (*x.labels[:-1], units)))


@knows(layers.Embedding)
def embedding(trace: Trace, call: Call) -> Axes | list[Axes]:
    layer, (x,) = call.operation, call.inputs
    if not plain_weights(layer):
        return trace.pin_all(call, f"{describe(call)} has quantized weights or LoRA factors")
    width = trace.use(call, layer.embeddings, 1, "out", trace.new(layer.output_dim))
    trace.edit(call, lambda config, size: {"output_dim": size(width)}, width)
    return Axes(call.outputs[0], (*x.labels, width))


@knows(layers.EinsumDense)
def einsum_dense(trace: Trace, call: Call) -> Axes | list[Axes]:
    layer, (x,) = call.operation, call.inputs
    if not plain_weights(layer):
        return trace.pin_all(call, f"{describe(call)} has quantized weights or LoRA factors")
    source, kernel, target = letters(layer.equation, x.rank)
    if len(set(kernel)) < len(kernel) or set(source) - set(kernel) - set(target):
        return trace.pin_all(call, f"{describe(call)} takes a diagonal or a sum of its input")
    known = dict(zip(source, x.labels, strict=True))
    for axis, letter in enumerate(kernel):
        if letter in source:
            role = "each" if letter in target else "in"
            known[letter] = trace.use(call, layer.kernel, axis, role, known[letter])
        else:
            new = trace.new(layer.kernel.shape[axis])
            known[letter] = trace.use(call, layer.kernel, axis, "out", new)
    result = [known[letter] for letter in target]
    sizes = list(zip(target, call.outputs[0], strict=True))[1:]
    trace.multiply(layer.kernel, [size for letter, size in sizes if letter not in kernel])
    if layer.bias_axes:
        for axis, letter in enumerate(layer.bias_axes):
            if layer.bias.shape[axis - len(layer.bias_axes)] > 1:
                trace.use(call, layer.bias, axis, "out", known[letter])
    wide = result[1:]

    def edit(config, size):
        shape = list(np.atleast_1d(np.array(config["output_shape"], object)))
        labels = wide[len(wide) - len(shape) :]
        return {
            "output_shape": [
                old if own is None or old is None else size(own)
                for old, own in zip(shape, labels, strict=True)
            ]
        }

    trace.edit(call, edit, *wide)
    return after_activation(trace, call, Axes(call.outputs[0], tuple(result)))


def letters(equation: str, rank: int) -> tuple[str, str, str]:
    """Returns the subscripts of input, kernel and output, `...` replaced by letters not in use.

    >>> letters("...x,xy->...y", rank=3)
    ('ABx', 'xy', 'ABy')
    """
    source, kernel, target = re.split(",|->", equation.replace(" ", ""))
    if "..." in source or "..." in target:
        free = [letter for letter in string.ascii_uppercase if letter not in equation]
        more = "".join(free[: rank - len(source.replace("...", ""))])
        source, target = source.replace("...", more), target.replace("...", more)
    return source, kernel, target
