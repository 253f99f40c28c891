"""Attention: whole heads, and the dimensions inside of them."""

import math

import keras
import numpy as np

from tfcompress.structured.trace import Axes, Call, Labels, Trace, describe, knows

layers = keras.layers


def _projection(trace: Trace, call: Call, dense, x: Labels, heads, width, role="out") -> None:
    """Records kernel (inputs, heads, width) and bias (heads, width) of a projection to heads."""
    trace.use(call, dense.kernel, 0, "in", x)
    trace.use(call, dense.kernel, 1, role, heads)
    trace.use(call, dense.kernel, 2, role, width)
    if dense.bias is not None:
        trace.use(call, dense.bias, 0, role, heads)
        trace.use(call, dense.bias, 1, role, width)


def _output(trace: Trace, call: Call, dense, heads, width, units: np.ndarray) -> np.ndarray:
    """Records kernel (heads, width, outputs) and bias of the projection back."""
    trace.use(call, dense.kernel, 0, "in", heads)
    trace.use(call, dense.kernel, 1, "in", width)
    units = trace.use(call, dense.kernel, 2, "out", units)
    if dense.bias is not None:
        trace.use(call, dense.bias, 0, "out", units)
    return units


def _keep_scale(trace: Trace, call: Call, dense, width: np.ndarray) -> None:
    """Scores are divided by the root of the width: narrower queries make up for it."""
    trace.remark(width, f"{describe(call)} leaves their products out of its scores")
    for variable in dense.weights:
        trace.factors[id(variable)] = lambda size: float(np.sqrt(size(width) / width.size))


def _count(
    trace: Trace, layer, query: Axes, key: Axes, heads, keys: np.ndarray, values: np.ndarray
) -> None:
    """Counts the multiplications: four projections, the scores, and what they weigh."""
    asked, answers = (math.prod(size or 1 for size in x.shape[1:-1]) for x in (query, key))
    for dense, positions in (
        (layer._query_dense, asked),
        (layer._key_dense, answers),
        (layer._value_dense, answers),
        (layer._output_dense, asked),
    ):
        trace.multiply(dense.kernel, [positions])
    for width in (keys, values):
        trace.contract((asked, None), (answers, None), (heads.size, heads), (width.size, width))


def _tensors(call: Call) -> tuple[Axes, Axes, Axes]:
    """Returns query, value and key, given by position or by name."""
    given = dict(zip(("query", "value", "key"), call.args, strict=False)) | call.kwargs
    query, value = given["query"], given["value"]
    key = given.get("key")
    return query, value, value if key is None else key


def _fixed_but_last(trace: Trace, call: Call, *tensors: Axes) -> None:
    for x in call.inputs:
        for labels in x.labels[:-1] if any(x is y for y in tensors) else x.labels:  # a mask
            trace.pin(labels, f"{describe(call)} attends along them")


@knows(layers.MultiHeadAttention)
def multi_head(trace: Trace, call: Call) -> Axes | list[Axes]:
    layer = call.operation
    query, value, key = _tensors(call)
    output = layer._output_dense
    if len(output.kernel.shape) != 3:
        return trace.pin_all(call, f"{describe(call)} has an output of several axes")
    _fixed_but_last(trace, call, query, value, key)
    heads, keys = trace.new(layer.num_heads), trace.new(layer.key_dim)
    values = trace.new(layer.value_dim)
    _projection(trace, call, layer._query_dense, query.labels[-1], heads, keys)
    _projection(trace, call, layer._key_dense, key.labels[-1], heads, keys)
    _projection(trace, call, layer._value_dense, value.labels[-1], heads, values)
    if layer._use_gate:
        _projection(trace, call, layer._gate_dense, query.labels[-1], heads, values)
    units = _output(trace, call, output, heads, values, trace.new(output.kernel.shape[2]))
    _keep_scale(trace, call, layer._query_dense, keys)
    _count(trace, layer, query, key, heads, keys, values)

    def edit(config, size):
        return {
            "num_heads": size(heads),
            "key_dim": size(keys),
            "value_dim": size(values),
            "output_shape": [size(units)],
        }

    trace.edit(call, edit, heads, keys, values, units)
    shape, *scores = call.outputs
    result = [Axes.on(shape, len(shape) - 1, units)]
    return result + [Axes.on(shape, 1, heads) for shape in scores]


@knows(layers.GroupQueryAttention)
def group_query(trace: Trace, call: Call) -> Axes | list[Axes]:
    layer = call.operation
    query, value, key = _tensors(call)
    _fixed_but_last(trace, call, query, value, key)
    # A head of keys and values goes with all the heads of queries that share it.
    heads, width = trace.new(layer.num_key_value_heads), trace.new(layer.head_dim)
    # Keras 3.15 computes other values where heads are one dimension wide.
    trace.pin(width[:2], f"{describe(call)} needs two dimensions")
    shared = np.repeat(heads, layer.num_query_heads // layer.num_key_value_heads)
    _projection(trace, call, layer._query_dense, query.labels[-1], shared, width)
    _projection(trace, call, layer._key_dense, key.labels[-1], heads, width)
    _projection(trace, call, layer._value_dense, value.labels[-1], heads, width)
    if layer.use_gate:
        _projection(trace, call, layer._gate_dense, query.labels[-1], shared, width)
    # The layer's output is as wide as its query, whatever the weights.
    units = trace.new(layer._output_dense.kernel.shape[2])
    units = _output(trace, call, layer._output_dense, shared, width, units)
    trace.tie(units, query.labels[-1], f"{describe(call)} is as wide as its query, which must stay")
    _keep_scale(trace, call, layer._query_dense, width)
    _count(trace, layer, query, key, shared, width, width)

    def edit(config, size):
        return {
            "num_query_heads": size(shared),
            "num_key_value_heads": size(heads),
            "head_dim": size(width),
        }

    trace.edit(call, edit, shared, heads, width)
    shape, *scores = call.outputs
    result = [Axes.on(shape, len(shape) - 1, units)]
    return result + [Axes.on(shape, 1, shared) for shape in scores]


@knows(layers.Attention)
def dot_product(trace: Trace, call: Call) -> Axes | list[Axes]:
    query, value, *key = call.inputs
    if call.operation.score_mode != "dot" or len(call.outputs) > 1 or len(key) > 1:
        return trace.pin_all(call, f"{describe(call)} scores by more than products")
    keys = key[0] if key else value
    _fixed_but_last(trace, call, query, value, keys)
    reason = f"{describe(call)} multiplies them with what must stay"
    contracted = trace.tie(query.labels[-1], keys.labels[-1], reason)
    trace.remark(contracted, f"{describe(call)} leaves their products out of its scores")
    for x in (query, value):
        trace.contract((query.shape[1], None), (keys.shape[1], None), (x.shape[2], x.labels[2]))
    return Axes.on(call.outputs[0], 2, value.labels[-1])
