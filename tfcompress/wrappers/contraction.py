"""Products of tensors: EinsumDense and Dot as FULLY_CONNECTED and BATCH_MATMUL."""

from typing import Any

import keras
import numpy as np

from tfcompress.wrappers.normalization import unit_norm
from tfcompress.wrappers.parts import Parts, permuted, product, resized, values

_OPS = keras.ops


def einsum_dense(parts: Parts, owner: Any, x: Any, name: str, factor: float = 1.0) -> Any:
    """The equation's contraction as one Dense layer, without the activation.

    The outputs come `factor` times as large: what a constant would do to them, the scale of the
    kernel does for nothing.
    """
    inputs, kernel, outputs = _labels(owner, len(x.shape))
    contracted = [label for label in kernel if label in inputs]
    new = [label for label in outputs if label in kernel]
    batch = [label for label in inputs if label not in kernel]
    weights = values(owner.kernel).transpose([kernel.index(a) for a in contracted + new])
    sizes = weights.shape[len(contracted) :]
    weights = weights.reshape(-1, product(sizes)) * factor
    bias = values(owner.bias)
    if bias is not None:
        bias = np.broadcast_to(bias, sizes).reshape(-1) * factor
    x = permuted(x, [inputs.index(label) for label in batch + contracted])
    kept = x.shape[1 : len(batch)]
    x = resized(x, (*kept, weights.shape[0]))
    y = parts.dense(name, owner, weights, bias)(x)
    y = resized(y, (*kept, *sizes))
    return permuted(y, [(batch + new).index(label) for label in outputs])


def reason_of_einsum_dense(owner: Any, x: Any) -> str | None:
    if owner.quantization_mode is not None or getattr(owner, "lora_enabled", False):
        return "the layer is quantized or adapted by Keras already"
    inputs, kernel, outputs = _labels(owner, len(x.shape))
    new = [label for label in outputs if label in kernel]
    if any(label in inputs and label in outputs for label in kernel):
        return f"the kernel of '{owner.equation}' differs along an axis of its inputs"
    if inputs[0] != outputs[0] or any(x not in outputs for x in inputs if x not in kernel):
        return f"'{owner.equation}' does not keep the axes of its inputs"
    if owner.bias is not None and (outputs[-len(new) :] != new or len(owner.bias.shape) > len(new)):
        return f"the bias of '{owner.equation}' has axes of its inputs"
    if sum(size is None for size in x.shape[1:]) > 1:
        return "the sizes of its inputs must be fixed"
    return None


def _labels(owner: Any, rank: int) -> tuple[list[str], list[str], list[str]]:
    """Returns the labels of inputs, kernel and outputs, "..." written out."""
    left, outputs = owner.equation.replace(" ", "").split("->")
    inputs, kernel = left.split(",")
    spare = [chr(ord("A") + number) for number in range(rank - len(inputs.replace("...", "")))]

    def labels(text: str) -> list[str]:
        before, dots, after = text.partition("...")
        return [*before, *(spare if dots else []), *after]

    return labels(inputs), labels(kernel), labels(outputs)


def dot(parts: Parts, owner: Any, pair: Any) -> Any:
    """`keras.layers.Dot` of vectors or of sequences."""
    a, b = pair
    axes = owner.axes if isinstance(owner.axes, list | tuple) else [owner.axes] * 2
    first, second = axes[0] % len(a.shape), axes[1] % len(b.shape)
    if owner.normalize:
        a, b = (unit_norm(parts, _Unit(owner, axis), x) for x, axis in ((a, first), (b, second)))
    # The contracted axis goes last in a, before last in b.
    a = permuted(a, [axis for axis in range(len(a.shape)) if axis != first] + [first])
    order = [axis for axis in range(len(b.shape)) if axis != second]
    b = permuted(b, [order[0], second, *order[1:]])
    kept = (*a.shape[1:-1], *b.shape[2:])
    a = a if len(a.shape) == 3 else resized(a, (1, a.shape[-1]))
    b = b if len(b.shape) == 3 else resized(b, (b.shape[1], 1))
    return resized(_OPS.matmul(a, b), kept or (1,))


def reason_of_dot(owner: Any, pair: Any) -> str | None:
    if any(len(x.shape) > 3 or None in x.shape[1:] for x in pair):
        return "Dot of more than three axes, or of open sizes, is not simulated"
    return None


class _Unit:
    """What `unit_norm` needs to know."""

    name = None

    def __init__(self, owner: Any, axis: int):
        self.axis, self.dtype_policy = axis, owner.dtype_policy
