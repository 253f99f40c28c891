"""On which grid each tensor of a graph is, given which operators compute in integers."""

from collections.abc import Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.errors import InputError
from tfcompress.quantization.grid import Grid, grid
from tfcompress.tflite import flatbuffer as fb
from tfcompress.tflite.calibration import Ranges
from tfcompress.tflite.operators import KERNELS, OPERATORS, Way, codes

_Spot = tuple[int, int]  # a tensor's number and the bits that it is wanted in


class Grids:
    """The grid of each tensor in 8 or 16 bits.

    Tensors that an operator wants on one grid share it: it covers what all of them reach. Where a
    kernel dictates the grid of one of them, the others are converted to theirs.
    """

    def __init__(self, model: schema.ModelT, bits: Sequence[int], ranges: Ranges):
        """`bits`: by operator of the main graph 8 or 16, 0 where it computes in floats."""
        self._model, self._main = model, model.subgraphs[0]
        self._bits, self._ranges = bits, ranges
        self._floats = {
            number
            for number, tensor in enumerate(self._main.tensors)
            if fb.type_name(tensor) == "FLOAT32"
        }
        self._makers = {
            int(tensor): number
            for number, operator in enumerate(self._main.operators)
            for tensor in operator.outputs
        }
        self._parents: dict[_Spot, _Spot] = {}
        self._fixed: dict[_Spot, Grid] = {}
        self._join()
        self._made: dict[_Spot, Grid] = {}

    def data(self, number: int) -> list[int]:
        """Returns the tensors with numbers to quantize that the operator reads, in order."""
        operator = self._main.operators[number]
        name = fb.operator_name(self._model, operator)
        if name in KERNELS:
            return [int(operator.inputs[KERNELS[name].data])]
        return [int(i) for i in operator.inputs if i >= 0 and int(i) in self._floats]

    def made(self, number: int) -> list[int]:
        """Returns the tensors with numbers to quantize that the operator makes, in order."""
        return [int(i) for i in self._main.operators[number].outputs if int(i) in self._floats]

    def wanted(self, number: int, tensor: int) -> Grid:
        """Returns the grid on which the operator reads the tensor."""
        operator, bits = self._main.operators[number], self._bits[number]
        joined = OPERATORS[fb.operator_name(self._model, operator)].way is Way.JOINED
        if joined and self.made(number):
            return self.of(self.made(number)[0], bits)
        return self.of(tensor, bits)

    def of(self, tensor: int, bits: int) -> Grid:
        """Returns the grid of a tensor in so many bits."""
        root = self._root((tensor, bits))
        if root in self._fixed:
            return self._fixed[root]
        if root not in self._made:
            members = {n for n, b in self._parents if b == bits and self._root((n, b)) == root} | {
                tensor
            }
            learned = members & set(self._ranges.learned)
            bounds = [self._bounds(number, bits) for number in sorted(learned or members)]
            low, high = min(b[0] for b in bounds), max(b[1] for b in bounds)
            if learned:  # in training they were rounded as one; 16 bits reach beyond that
                low, high = min(bounds, key=lambda b: b[1] - b[0])
            found = grid(low, high, codes(bits))
            scale = float(np.float32(found.scale)) or self._scale_of_zeros(tensor, bits)
            self._made[root] = Grid(np.array(scale), found.zero_point, found.codes)
        return self._made[root]

    def _scale_of_zeros(self, tensor: int, bits: int) -> float:
        """Returns a scale for a tensor that is always 0: that of what it is computed from.

        The kernels need one, and take no ratio of neighbours' scales above 2**30.
        """
        maker = self._makers.get(tensor)
        before = [] if maker is None or self._bits[maker] != bits else self.data(maker)
        before = [t for t in before if self._root((t, bits)) != self._root((tensor, bits))]
        return float(self.of(before[0], bits).scale) if before else 2.0**-7

    def _bounds(self, tensor: int, bits: int) -> tuple[float, float]:
        if tensor in self._ranges:
            return self._ranges.of(tensor, bits)
        values = fb.data(self._model, self._main.tensors[tensor])
        if values is None:
            name = fb.tensor_name(self._main.tensors[tensor])
            raise InputError(f"Tensor '{name}' has no range yet: give samples, too.")
        if not values.size:
            return 0.0, 0.0
        return float(min(values.min(), 0.0)), float(max(values.max(), 0.0))

    def _join(self) -> None:
        for number, bits in enumerate(self._bits):
            operator = OPERATORS.get(self._name(number))
            if not bits or operator is None:
                continue
            for tensor in self.made(number):
                dictated = operator.output_grid(bits)
                if dictated is not None:
                    self._fixed[self._root((tensor, bits))] = dictated
                elif operator.way is Way.SAME:
                    self._union((self.data(number)[0], bits), (tensor, bits))
        for number, bits in enumerate(self._bits):
            operator = OPERATORS.get(self._name(number))
            if not bits or operator is None or operator.way is not Way.JOINED:
                continue
            for tensor in self.data(number) if self.made(number) else ():
                result = (self.made(number)[0], bits)
                constant = fb.data(self._model, self._main.tensors[tensor]) is not None
                if not constant and not self._learned_apart(tensor, result[0]):
                    self._union((tensor, bits), result, both=False)

    def _learned_apart(self, one: int, other: int) -> bool:
        learned = self._ranges.learned
        return one in learned and other in learned and learned[one] != learned[other]

    def _union(self, one: _Spot, other: _Spot, both: bool = True) -> None:
        """Has two tensors share a grid; with `both` False only if no kernel dictates one's."""
        first, second = self._root(one), self._root(other)
        if first == second or (not both and (first in self._fixed or second in self._fixed)):
            return
        # What is dictated stays at the root.
        if second in self._fixed:
            first, second = second, first
        self._parents[second] = first

    def _root(self, spot: _Spot) -> _Spot:
        self._parents.setdefault(spot, spot)
        while self._parents[spot] != spot:
            spot = self._parents[spot]
        return spot

    def _name(self, number: int) -> str:
        return fb.operator_name(self._model, self._main.operators[number])
