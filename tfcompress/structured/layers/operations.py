"""`keras.ops` in functional models: arithmetic, reductions, products, and what moves values."""

from typing import Any

import keras
import numpy as np

from tfcompress.structured.layers.elementwise import broadcast, joined, normalized_along
from tfcompress.structured.layers.reshaping import follow, reshaped, transposed
from tfcompress.structured.trace import Axes, Call, Labels, Trace, describe, knows

_ARITHMETIC = """
    Absolute Add Arctan Arctan2 Cast Ceil Celu Copy Cos Cosh Divide DivideNoNan Elu Equal
    Erf Exp Exp2 Expm1 Floor FloorDivide Fmax Fmin Gelu Greater GreaterEqual HardShrink
    HardSigmoid HardSilu HardTanh Heaviside Isfinite Isinf Isnan LeakyRelu Less LessEqual Log
    Log10 Log1p Log2 LogSigmoid LogicalAnd LogicalNot LogicalOr LogicalXor Maximum Minimum Mod
    Multiply NanToNum Negative NotEqual OnesLike Power Reciprocal Relu Relu6 Round Rsqrt Selu
    Sigmoid Sign Silu Sin Sinh SoftShrink Softplus Softsign SparsePlus SparseSigmoid Sqrt Square
    Squareplus StopGradient Subtract Tan Tanh TanhShrink Threshold TrueDivide Trunc Where
    ZerosLike
"""
_REDUCTIONS = """
    All Amax Amin Any Argmax Argmin CountNonzero Logsumexp Max Mean Median Min Prod Std Sum Var
"""


@knows("Clip")
def clip(trace: Trace, call: Call) -> Axes | list[Axes]:
    if np.ndim(call.operation.x_min) or np.ndim(call.operation.x_max):
        return trace.pin_all(call, f"{describe(call)} has a limit for each of them")
    return arithmetic(trace, call)


@knows(*_ARITHMETIC.split())
def arithmetic(trace: Trace, call: Call) -> Axes:
    given = keras.tree.flatten((call.args, call.kwargs))
    tensors = [x if isinstance(x, Axes) else Axes.fixed(np.shape(x)) for x in given if _sized(x)]
    return broadcast(trace, call, tensors)


def _sized(x: Any) -> bool:
    return isinstance(x, Axes) or (hasattr(x, "shape") and len(x.shape) > 0)


@knows(*_REDUCTIONS.split())
def reduction(trace: Trace, call: Call) -> Axes:
    (x,), axes = call.inputs, call.operation.axis
    if axes is None:
        axes = range(x.rank)
    gone = {axis % x.rank for axis in np.atleast_1d(np.array(axes, int))}
    for axis in gone:
        trace.pin(x.labels[axis], f"{describe(call)} reduces over them")
    labels = [None if axis in gone else own for axis, own in enumerate(x.labels)]
    if not call.operation.keepdims:
        labels = [own for axis, own in enumerate(labels) if axis not in gone]
    return Axes(call.outputs[0], tuple(labels))


@knows("Softmax", "LogSoftmax", "Sparsemax")
def softmax(trace: Trace, call: Call) -> Axes:
    axis = getattr(call.operation, "axis", -1)
    return normalized_along(trace, call, axis if isinstance(axis, list | tuple) else [axis])


@knows("Reshape")
def reshape(trace: Trace, call: Call) -> Axes:
    result = reshaped(trace, call, call.inputs[0])
    follow(trace, call, "newshape", result.labels)
    return result


@knows("Ravel")
def ravel(trace: Trace, call: Call) -> Axes:
    return reshaped(trace, call, call.inputs[0])


@knows("Transpose", "Moveaxis", "Swapaxes")
def transpose(trace: Trace, call: Call) -> Axes:
    op, (x,) = call.operation, call.inputs
    # numpy moves the axes of an array whose sizes tell them apart.
    axes = np.empty(range(x.rank))
    if type(op).__name__ == "Transpose":
        axes = np.transpose(axes, op.axes)
    elif type(op).__name__ == "Swapaxes":
        axes = np.swapaxes(axes, op.axis1, op.axis2)
    else:
        axes = np.moveaxis(axes, op.source, op.destination)
    return transposed(x, axes.shape)


@knows("ExpandDims")
def expand_dims(trace: Trace, call: Call) -> Axes:
    labels = list(call.inputs[0].labels)
    rank = len(call.outputs[0])
    for axis in sorted(int(axis) % rank for axis in np.atleast_1d(call.operation.axis)):
        labels.insert(axis, None)
    return Axes(call.outputs[0], tuple(labels))


@knows("Squeeze")
def squeeze(trace: Trace, call: Call) -> Axes:
    (x,), axes = call.inputs, call.operation.axis
    ones = [axis for axis, size in enumerate(x.shape) if size == 1]
    gone = set(ones if axes is None else (int(axis) % x.rank for axis in np.atleast_1d(axes)))
    labels = [own for axis, own in enumerate(x.labels) if axis not in gone]
    return Axes(call.outputs[0], tuple(labels))


@knows("Concatenate")
def concatenate(trace: Trace, call: Call) -> Axes:
    return joined(trace, call, call.operation.axis)


@knows("Stack")
def stack(trace: Trace, call: Call) -> Axes:
    rank = len(call.outputs[0])
    axis = call.operation.axis % rank
    labels = list(call.inputs[0].labels)
    for x in call.inputs[1:]:
        reason = f"{describe(call)} puts them beside what must stay"
        labels = [trace.tie(a, b, reason) for a, b in zip(labels, x.labels, strict=True)]
    labels.insert(axis, None)
    return Axes(call.outputs[0], tuple(labels))


@knows("Pad", "Roll", "Cumsum", "Cumprod", "Sort", "Argsort", "Repeat", "Tile", "Flip")
def along_axes(trace: Trace, call: Call) -> Axes | list[Axes]:
    """What moves or repeats values along some axes: those are fixed, the others pass."""
    (x, *more), shape = call.inputs, call.outputs[0]
    if more or len(shape) != x.rank:
        return trace.pin_all(call, f"{describe(call)} changes the axes that they are on")
    touched = _touched(call, x)
    for axis in touched:
        trace.pin(x.labels[axis], f"{describe(call)} moves them along their axis")
    return Axes(shape, tuple(None if i in touched else own for i, own in enumerate(x.labels)))


def _touched(call: Call, x: Axes) -> set[int]:
    op = call.operation
    if type(op).__name__ == "Pad":
        widths = np.broadcast_to(np.array(op.pad_width), (x.rank, 2))
        return {axis for axis in range(x.rank) if widths[axis].any()}
    if type(op).__name__ == "Tile":
        repeats = np.atleast_1d(op.repeats)
        return {x.rank - repeats.size + i for i, n in enumerate(repeats) if n != 1}
    axes = op.axis
    return set(range(x.rank)) if axes is None else {int(a) % x.rank for a in np.atleast_1d(axes)}


@knows("Split")
def split(trace: Trace, call: Call) -> list[Axes]:
    (x,), op = call.inputs, call.operation
    axis = op.axis % x.rank
    labels = x.labels[axis]
    if labels is None:
        return [Axes(shape, x.labels) for shape in call.outputs]
    ends = np.cumsum([shape[axis] for shape in call.outputs])[:-1]
    parts = np.split(labels, ends)
    trace.parts += parts

    def edit(config, size):
        return {"indices_or_sections": [size(labels[:end]) for end in ends]}

    trace.edit(call, edit, *parts)
    return [
        Axes(shape, x.having(axis, part).labels)
        for shape, part in zip(call.outputs, parts, strict=True)
    ]


@knows("GetItem")
def get_item(trace: Trace, call: Call) -> Axes | list[Axes]:
    x = call.inputs[0]
    key = call.args[1] if len(call.args) > 1 else call.kwargs["key"]
    key = tuple(key) if isinstance(key, list | tuple) else (key,)
    if any(isinstance(part, Axes) for part in keras.tree.flatten(key)):
        return trace.pin_all(call, f"{describe(call)} is indexed by a tensor")
    missing = x.rank - sum(part is not None and part is not Ellipsis for part in key)
    if Ellipsis not in key:
        key = (*key, Ellipsis)
    at = key.index(Ellipsis)
    key = (*key[:at], *[slice(None)] * missing, *key[at + 1 :])
    labels: list[Labels] = []
    followed: dict[int, tuple[slice, np.ndarray]] = {}
    axis = 0
    for position, part in enumerate(key):
        if part is None:
            labels.append(None)
            continue
        own = x.labels[axis]
        axis += 1
        if isinstance(part, slice):
            if own is not None and part.step in (None, 1):
                followed[position] = (part, own)
                labels.append(own[part])
                trace.parts.append(own[part])
                continue
            if own is not None and part != slice(None):
                trace.pin(own, f"{describe(call)} takes every {part.step}th of them")
            labels.append(None)
        else:
            trace.pin(own, f"{describe(call)} takes one of them")

    def edit(args, kwargs, size):
        changed = list(key)
        for position, (part, own) in followed.items():
            start, stop, _ = part.indices(own.size)
            changed[position] = slice(size(own[:start]), size(own[:stop]))
        return (args[0], tuple(changed)), {}

    if followed:
        trace.calls[id(call.node)] = edit
    return Axes(call.outputs[0], tuple(labels))


@knows("Matmul")
def matmul(trace: Trace, call: Call) -> Axes | list[Axes]:
    if len(call.inputs) != 2 or min(x.rank for x in call.inputs) < 2:
        return trace.pin_all(call, f"{describe(call)} multiplies by a constant or a vector")
    first, second = call.inputs
    reason = f"{describe(call)} multiplies them with what must stay"
    contracted = trace.tie(first.labels[-1], second.labels[-2], reason)
    trace.remark(contracted, f"{describe(call)} leaves their products out")
    shape = call.outputs[0]
    outer = [Axes(x.shape[:-2], x.labels[:-2]) for x in (first, second)]
    batch = broadcast(trace, _with_outputs(call, shape[:-2]), outer)
    result = Axes(shape, (*batch.labels, first.labels[-2], second.labels[-1]))
    trace.contract(*_sizes(result)[1:], (first.shape[-1], contracted))
    return result


def _sizes(x: Axes) -> list[tuple[int | None, Labels]]:
    return list(zip(x.shape, x.labels, strict=True))


def _with_outputs(call: Call, shape: tuple) -> Call:
    return Call(call.operation, call.path, call.inputs, call.args, call.kwargs, [shape])


@knows("Einsum")
def einsum(trace: Trace, call: Call) -> Axes | list[Axes]:
    equation = call.operation.subscripts.replace(" ", "")
    if "..." in equation or "->" not in equation or len(call.args) != len(call.inputs):
        return trace.pin_all(call, f"{describe(call)} has an ellipsis or a constant")
    sources, target = equation.split("->")
    known: dict[str, Labels] = {}
    seen: set[str] = set()
    sizes: dict[str, int | None] = {}
    for letters, x in zip(sources.split(","), call.inputs, strict=True):
        for letter, labels in zip(letters, x.labels, strict=True):
            reason = f"{describe(call)} multiplies them with what must stay"
            known[letter] = trace.tie(known[letter], labels, reason) if letter in seen else labels
            seen.add(letter)
        sizes |= dict(zip(letters, x.shape, strict=True))
    for letter in seen - set(target):
        trace.remark(known[letter], f"{describe(call)} leaves their products out")
    trace.contract(*((sizes[letter], known[letter]) for letter in seen - {target[0]}))
    return Axes(call.outputs[0], tuple(known[letter] for letter in target))
