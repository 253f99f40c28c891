"""What a `.tflite` file really holds, read back from its bytes."""

import dataclasses
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.tflite import flatbuffer as fb
from tfcompress.tflite.delegation import delegated
from tfcompress.tflite.macs import KERNEL_INPUT, macs

_UNPACKING = ("DEQUANTIZE", "DENSIFY")
# The axis of a kernel that enumerates output channels, as the operators store it.
_OUTPUT_AXIS = {"DEPTHWISE_CONV_2D": 3, "CONV_3D": 4, "BATCH_MATMUL": -1}


@dataclasses.dataclass(frozen=True)
class Weight:
    """One kernel of the file, in the integers or floats that are stored.

    name: `operator number OPERATOR`; shape as stored; size: number of weights.
    nonzeros: weights that stand for something else than 0 (the zero-point counts as 0).
    distinct: different values other than 0 in the kernel.
    distinct_per_channel: the same in an output channel, the most of all.
    bytes: of its buffer.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    size: int
    nonzeros: int
    distinct: int
    distinct_per_channel: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Audit:
    """What a `.tflite` file holds.

    size_bytes, deflated_bytes: of the file; deflated with zlib at level 9.
    inputs, outputs: name, shape, dtype, scale and zero_point of each (scale 0: none).
    operators, tensors: {name: count} and {type: count}, over all graphs of the file.
    float_operators: operators that read or write a float tensor, in order.
    delegated_operators: operators of the main graph that XNNPACK takes here, in order.
    full_integer: whether there is no float tensor in the file and integers go in and out.
    macs: multiply-accumulates of one run.
    weights: the kernels, one `Weight` each.
    """

    size_bytes: int
    deflated_bytes: int
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    operators: dict[str, int]
    tensors: dict[str, int]
    float_operators: list[str]
    delegated_operators: list[str]
    full_integer: bool
    macs: int
    weights: list[Weight]

    @property
    def parameters(self) -> int:
        """Weights of all kernels."""
        return sum(weight.size for weight in self.weights)

    @property
    def nonzeros(self) -> int:
        return sum(weight.nonzeros for weight in self.weights)

    @property
    def sparsity(self) -> float:
        """Share of zeros in the kernels, in [0, 1]."""
        return 1.0 - self.nonzeros / max(self.parameters, 1)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON takes them."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        lines = [
            f"bytes        {self.size_bytes:,} ({self.deflated_bytes:,} deflated)",
            f"inputs       {', '.join(map(_show, self.inputs))}",
            f"outputs      {', '.join(map(_show, self.outputs))}",
            f"full integer {'yes' if self.full_integer else 'no'}",
            f"MACs         {self.macs:,}",
            f"tensors      {_counts(self.tensors)}",
            f"operators    {_counts(self.operators)}",
            f"XNNPACK      {len(self.delegated_operators)} operators",
            f"float        {_counts(Counter(self.float_operators)) or 'none'}",
            f"sparsity     {self.sparsity:.1%} of {self.parameters:,} weights",
            "",
            f"{'kernel':<24}{'shape':<20}{'type':<9}{'weights':>10}{'non-zero':>10}"
            f"{'distinct':>10}{'per channel':>13}{'bytes':>11}",
        ]
        lines += [
            f"{w.name:<24}{'x'.join(map(str, w.shape)):<20}{w.dtype:<9}{w.size:>10,}"
            f"{w.nonzeros:>10,}{w.distinct:>10,}{w.distinct_per_channel:>13,}{w.bytes:>11,}"
            for w in self.weights
        ]
        return "\n".join(lines)


def audit(flatbuffer: fb.Flatbuffer) -> Audit:
    """Reads a `.tflite` file back: types, operators, bytes, weights. Nothing is taken on trust.

    Args:
        flatbuffer: the file's content or its path.

    Raises:
        InputError: the file cannot be read, is truncated or does not run.

        print(tfc.audit("model.tflite"))
    """
    content = fb.read_bytes(flatbuffer)
    model = fb.parse(flatbuffer)
    main = model.subgraphs[0]
    taken = delegated(flatbuffer)
    pairs = [(graph, operator) for graph in model.subgraphs for operator in graph.operators or []]
    tensors = [tensor for graph in model.subgraphs for tensor in graph.tensors or []]
    public = [main.tensors[i] for i in (*main.inputs, *main.outputs)]
    return Audit(
        size_bytes=len(content),
        deflated_bytes=len(zlib.compress(content, 9)),
        inputs=[_describe(main.tensors[i]) for i in main.inputs],
        outputs=[_describe(main.tensors[i]) for i in main.outputs],
        operators=_sorted(fb.operator_name(model, operator) for _, operator in pairs),
        tensors=_sorted(fb.type_name(tensor) for tensor in tensors),
        float_operators=[fb.operator_name(model, o) for g, o in pairs if _touches_float(g, o)],
        delegated_operators=[
            fb.operator_name(model, operator)
            for operator, by_xnnpack in zip(main.operators or [], taken, strict=True)
            if by_xnnpack
        ],
        full_integer=not any(map(fb.is_float, tensors))
        and all("INT" in fb.type_name(tensor) for tensor in public),
        macs=sum(macs(model, graph, operator) for graph, operator in pairs),
        weights=[weight for weight, _ in _kernels(model)],
    )


def stored_kernels(flatbuffer: fb.Flatbuffer) -> Iterator[tuple[Weight, np.ndarray]]:
    """Yields the kernels of a `.tflite` file with their numbers as stored, 0 for zero.

    Integers are less their zero-points; the zeros of a sparse kernel are not in the array, which is
    flat then.

    Raises:
        InputError: the file cannot be read or is truncated.
    """
    yield from _kernels(fb.parse(flatbuffer))


def _kernels(model: schema.ModelT) -> Iterator[tuple[Weight, np.ndarray]]:
    found: set[tuple[int, int]] = set()
    number = -1
    for place, graph in enumerate(model.subgraphs):
        producers = {int(t): o for o in graph.operators or [] for t in o.outputs}
        for operator in graph.operators or []:
            number += 1
            name = fb.operator_name(model, operator)
            if name not in KERNEL_INPUT:
                continue
            index = int(operator.inputs[KERNEL_INPUT[name]])
            # float16 kernels pass through a DEQUANTIZE, sparse ones through a DENSIFY
            if index in producers and fb.operator_name(model, producers[index]) in _UNPACKING:
                index = int(producers[index].inputs[0])
            tensor = graph.tensors[index]
            values = fb.data(model, tensor)
            if values is None or len(fb.shape(tensor)) < 2 or (place, index) in found:
                continue
            axis = _OUTPUT_AXIS.get(name, 0)
            if name == "BATCH_MATMUL" and operator.builtinOptions.adjY:
                axis = -2
            found.add((place, index))
            values = values - _zero_point(tensor, values)
            yield _read(f"{number} {name}", model, tensor, values, axis), values


def _read(
    name: str, model: schema.ModelT, tensor: schema.TensorT, values: np.ndarray, axis: int
) -> Weight:
    sparse = tensor.sparsity is not None
    channels = [values] if sparse else np.moveaxis(values, axis, 0)
    return Weight(
        name=name,
        shape=fb.shape(tensor),
        dtype=fb.type_name(tensor),
        size=int(np.prod(fb.shape(tensor))),
        nonzeros=int(np.count_nonzero(values)),
        distinct=len(np.unique(values[values != 0])),
        distinct_per_channel=max(len(np.unique(c[c != 0])) for c in channels),
        bytes=len(model.buffers[tensor.buffer].data),
    )


def _zero_point(tensor: schema.TensorT, values: np.ndarray) -> np.ndarray | int:
    """Returns the code of 0, shaped to be subtracted; 0 for floats and symmetric integers."""
    q = tensor.quantization
    if fb.is_float(tensor) or q is None or q.zeroPoint is None or not np.any(q.zeroPoint):
        return 0
    if len(q.zeroPoint) == 1:
        return int(q.zeroPoint[0])
    shape = [1] * values.ndim
    shape[q.quantizedDimension] = -1
    return np.asarray(q.zeroPoint).reshape(shape)


def _touches_float(graph: schema.SubGraphT, operator: schema.OperatorT) -> bool:
    indices = [int(i) for i in (*operator.inputs, *operator.outputs) if i >= 0]
    return any(fb.is_float(graph.tensors[i]) for i in indices)


def _describe(tensor: schema.TensorT) -> dict[str, Any]:
    scales = fb.scales(tensor)
    return {
        "name": fb.tensor_name(tensor),
        "shape": list(fb.shape(tensor)),
        "dtype": fb.type_name(tensor).lower(),
        "scale": float(scales[0]) if len(scales) else 0.0,
        "zero_point": int(tensor.quantization.zeroPoint[0]) if len(scales) else 0,
    }


def _show(tensor: dict[str, Any]) -> str:
    return f"{tensor['name']} {tensor['dtype']} {'x'.join(map(str, tensor['shape']))}"


def _sorted(names) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())
