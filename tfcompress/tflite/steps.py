"""The operators of two `.tflite` files of one model, matched: a float file and a quantized one.

Operators that only change the type of a tensor (QUANTIZE, DEQUANTIZE) are seen through, so that
what is left, the steps, is the same in every scheme.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.tflite import flatbuffer as fb
from tfcompress.tflite.macs import KERNEL_INPUT

_PASSING = ("QUANTIZE", "DEQUANTIZE")
# What may be rewritten to the other: 1x1 convolutions, pooling over whole maps.
_ALIKE = {"FULLY_CONNECTED": "CONV_2D", "MEAN": "AVERAGE_POOL_2D"}
_COMMUTATIVE = ("ADD", "MUL", "MAXIMUM", "MINIMUM")
# Kernels of the same layer correlate more than this even at 2 bits, those of others hardly at all.
_SAME_KERNEL = 0.5


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One operator of the main graph that computes something.

    number, name: of the operator in its graph. sources: the tensors that it reads, apart from
    constants, as far up as type changes go; inputs: the same as it reads them. kernel: in real
    numbers, in the file's layout; kernel_type: as stored, "" without one. bytes: of the constants.
    """

    number: int
    name: str
    sources: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    sizes: tuple[int, ...]
    kernel: np.ndarray | None
    kernel_type: str
    bytes: int

    @property
    def label(self) -> str:
        return f"{self.number} {self.name}"

    @property
    def kind(self) -> str:
        return _ALIKE.get(self.name, self.name)


def steps(model: schema.ModelT) -> list[Step]:
    """Returns the steps of the file's main graph, in its order."""
    graph = model.subgraphs[0]
    tensors = _Tensors(model)
    found = []
    for number, operator in enumerate(graph.operators or []):
        name = fb.operator_name(model, operator)
        outputs = tuple(map(int, operator.outputs))
        if name in _PASSING or outputs[0] not in tensors.running:
            continue
        inputs = tuple(int(i) for i in operator.inputs if int(i) in tensors.running)
        constants = {tensors.stored(int(i)) for i in operator.inputs if i >= 0} - {
            tensors.stored(i) for i in inputs
        }
        place = KERNEL_INPUT.get(name)
        kernel = None if place is None else tensors.stored(int(operator.inputs[place]))
        values = None if kernel not in constants else real(model, graph.tensors[kernel])
        found.append(
            Step(
                number=number,
                name=name,
                sources=tuple(tensors.source(i) for i in inputs),
                inputs=inputs,
                outputs=outputs,
                sizes=tuple(math.prod(fb.shape(graph.tensors[i])) for i in outputs),
                kernel=values,
                kernel_type="" if values is None else fb.type_name(graph.tensors[kernel]).lower(),
                bytes=sum(_bytes(model, graph.tensors[i]) for i in constants),
            )
        )
    return found


def constant_makers(model: schema.ModelT, number: int) -> list[int]:
    """Returns the numbers of the operators that make constants for operator `number`, in order."""
    tensors = _Tensors(model)
    made, wanted = [], [int(i) for i in model.subgraphs[0].operators[number].inputs if i >= 0]
    while wanted:
        maker = tensors.makers.get(wanted.pop())
        if maker is not None:
            operator = model.subgraphs[0].operators[maker]
            if int(operator.outputs[0]) not in tensors.running:
                made.append(maker)
                wanted += [int(i) for i in operator.inputs if i >= 0]
    return sorted(set(made))


def match(
    reference: Sequence[Step], found: Sequence[Step], inputs: Mapping[int, int]
) -> tuple[dict[int, Step], dict[int, int]]:
    """Returns, by number of each step of `found`, the step of `reference` that it stands for, and
    by tensor of `found` that of `reference`.

    A step stands for another of the same kind and size that reads what it reads, as far as the
    steps before are matched; or, where something was inserted in between, for the one with the same
    kernel. Steps that stand for none are left out.

    Args:
        inputs: the reference's input tensor by that of `found`.
    """
    tensors = dict(inputs)
    taken: set[int] = set()
    pairs: dict[int, Step] = {}
    for step in found:
        candidates = [a for a in reference if a.number not in taken and _alike(a, step)]
        pool = [a for a in candidates if _reads_the_same(a, step, tensors)]
        if step.kernel is not None:
            likeness = {a.number: _correlation(a.kernel, step.kernel) for a in candidates}
            pool = pool or [a for a in candidates if likeness[a.number] > _SAME_KERNEL]
            pool.sort(key=lambda a: -likeness[a.number])
        if pool:
            pairs[step.number] = pool[0]
            taken.add(pool[0].number)
            tensors |= dict(zip(step.outputs, pool[0].outputs, strict=True))
    return pairs, tensors


def real(model: schema.ModelT, tensor: schema.TensorT) -> np.ndarray | None:
    """Returns a constant in real numbers, float32; None for a sparse one."""
    values, q = fb.data(model, tensor), tensor.quantization
    if values is None or tensor.sparsity is not None:
        return None
    if (number := fb.block_scales(tensor)) is not None:
        scale = np.asarray(fb.data(model, model.subgraphs[0].tensors[number]))
        return (values * np.repeat(scale, q.details.blockSize, axis=-1)).astype(np.float32)
    scales = fb.scales(tensor)
    if fb.is_float(tensor) or len(scales) == 0:
        return values.astype(np.float32)
    shape = [1] * values.ndim
    if len(scales) > 1:
        shape[q.quantizedDimension] = -1
    zero_point = 0 if q.zeroPoint is None else np.reshape(q.zeroPoint, shape)
    return ((values - zero_point) * np.reshape(scales, shape)).astype(np.float32)


class _Tensors:
    """What makes each tensor of the main graph, and which depend on its inputs."""

    def __init__(self, model: schema.ModelT):
        self._model, graph = model, model.subgraphs[0]
        self._operators = graph.operators or []
        self.makers = {int(t): n for n, o in enumerate(self._operators) for t in o.outputs}
        self.running = set(map(int, graph.inputs))
        for operator in self._operators:
            if any(int(i) in self.running for i in operator.inputs):
                self.running |= set(map(int, operator.outputs))

    def source(self, tensor: int) -> int:
        """Returns the tensor of which this one is a copy of another type, or itself."""
        while tensor in self.makers:
            operator = self._operators[self.makers[tensor]]
            if fb.operator_name(self._model, operator) not in _PASSING:
                break
            tensor = int(operator.inputs[0])
        return tensor

    def stored(self, tensor: int) -> int:
        """Returns the tensor that the file stores for a constant, before it is unpacked."""
        while tensor in self.makers and tensor not in self.running:
            tensor = int(self._operators[self.makers[tensor]].inputs[0])
        return tensor


def _bytes(model: schema.ModelT, tensor: schema.TensorT) -> int:
    data = model.buffers[tensor.buffer].data
    return 0 if data is None else len(data)


def _alike(a: Step, b: Step) -> bool:
    weights = [None if step.kernel is None else step.kernel.size for step in (a, b)]
    return (a.kind, a.sizes, weights[0]) == (b.kind, b.sizes, weights[1])


def _reads_the_same(a: Step, b: Step, tensors: Mapping[int, int]) -> bool:
    sources = [tensors.get(i) for i in b.sources]
    if b.name in _COMMUTATIVE and None not in sources:
        return sorted(a.sources) == sorted(sources)  # type: ignore[type-var]
    return list(a.sources) == sources


def _correlation(a: np.ndarray | None, b: np.ndarray | None) -> float:
    if a is None or b is None:
        return 0.0
    x, y = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    product = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / product if product else float(x @ x == y @ y)
