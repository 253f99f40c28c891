"""What a file's kernels are multiplied with on the samples, for a rounding that looks at it."""

import functools
import math
import operator
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.errors import InputError
from tfcompress.quantization import LayerInputs
from tfcompress.tflite import flatbuffer as fb
from tfcompress.tflite.operators import KERNELS
from tfcompress.tflite.patches import groups_of, patches, to_matrices
from tfcompress.tflite.quantizer import Kernel
from tfcompress.tflite.replay import Replay

_LARGEST_MATRIX = 8192  # inputs of a kernel: above, their second moments take over 512 MB
# Places of its map at which a sample shows what a kernel sees: neighbours see nearly the same.
_MOST_PLACES = 1024


class KernelInputs:
    """Gathers the moments of one kernel's inputs after another, in the operators' order.

    The inputs are those that the file being written gives, whose layers before are quantized
    already; what their outputs should be, the float file tells. A kernel that several operators
    read is rounded once, with what the float file gives to each of them: what comes before the last
    is not known yet.
    """

    def __init__(
        self, model: schema.ModelT, samples: Sequence[np.ndarray], layer: Callable[[int], str]
    ):
        """`model` is the float file; `layer` names the layer of an operator, for errors."""
        self._model, self._layer = model, layer
        self._operators = model.subgraphs[0].operators
        self._exact, self._quantized = Replay(samples), Replay(samples)
        self._shared: dict[int, LayerInputs] = {}

    def of(self, kernel: Kernel) -> LayerInputs:
        """Returns the moments of a kernel's inputs over all samples."""
        number = kernel.number
        matrices = to_matrices(kernel.weights, self._name(number), self._groups(number))
        rows = matrices.shape[-2]
        if rows > _LARGEST_MATRIX:
            raise InputError(
                f"Rounding of layer '{self._layer(number)}' must have at most {_LARGEST_MATRIX} "
                "inputs per output to look at its inputs: give it rounding 'nearest' by a rule. "
                f"Received: inputs={rows}"
            )
        tensor = self._tensor(number)
        readers = [n for n in range(len(self._operators)) if self._tensor(n) == tensor]
        if len(readers) == 1:
            return _sum(self._beside(kernel, matrices))
        if tensor not in self._shared:
            self._shared[tensor] = _sum(
                LayerInputs.of(self._cut(reader, values, rows))
                for reader in readers
                for values, rows in zip(self._in_float(reader), self._places(reader), strict=False)
            )
        return self._shared[tensor]

    def _beside(self, kernel: Kernel, matrices: np.ndarray) -> Iterator[LayerInputs]:
        number = kernel.number
        later = self._read_from(number)
        found = self._quantized.read(kernel.written, kernel.operators, kernel.data, later)
        both = zip(self._in_float(number), found, strict=True)
        for (exact, values), rows in zip(both, self._places(number), strict=False):
            lost = self._cut(number, exact - values, rows)
            yield LayerInputs.of(self._cut(number, values, rows), lost @ matrices)

    def _in_float(self, number: int) -> Iterator[np.ndarray]:
        """Yields what the float file's operator reads, sample by sample."""
        before, later = self._operators[:number], self._read_from(number)
        data = int(self._operators[number].inputs[KERNELS[self._name(number)].data])
        return self._exact.read(self._model, before, data, later)

    def _places(self, number: int) -> Iterator[np.ndarray | slice]:
        """Yields for one sample after another at which places of the output its inputs are cut."""
        output = self._model.subgraphs[0].tensors[int(self._operators[number].outputs[0])]
        places = math.prod(fb.shape(output)[:-1])
        random = np.random.default_rng(number)
        while True:
            few = places > _MOST_PLACES
            yield random.choice(places, _MOST_PLACES, replace=False) if few else slice(None)

    def _cut(self, number: int, values: np.ndarray, rows: np.ndarray | slice) -> np.ndarray:
        name, op = self._name(number), self._operators[number]
        shape = fb.shape(self._model.subgraphs[0].tensors[self._tensor(number)])
        return patches(values, name, op, shape, self._groups(number), rows)

    def _read_from(self, number: int) -> set[int]:
        """Returns what this operator and those after it read."""
        return {int(i) for op in self._operators[number:] for i in op.inputs}

    def _name(self, number: int) -> str:
        return fb.operator_name(self._model, self._operators[number])

    def _tensor(self, number: int) -> int:
        """Returns the tensor of the operator's kernel, -1 if it has none."""
        places = KERNELS.get(self._name(number))
        return -1 if places is None else int(self._operators[number].inputs[places.kernel])

    def _groups(self, number: int) -> int:
        op = self._operators[number]
        data = self._model.subgraphs[0].tensors[int(op.inputs[KERNELS[self._name(number)].data])]
        return groups_of(self._model, op, fb.shape(data)[-1])


def _sum(parts: Iterator[LayerInputs]) -> LayerInputs:
    return functools.reduce(operator.add, parts)
