"""What each operator of a file shall compute in, and what of a request no file can hold."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress import rules
from tfcompress.tflite import flatbuffer as fb
from tfcompress.tflite import quantizer
from tfcompress.tflite.equivalents import (
    MULTIPLICATIONS,
    as_matrix_products,
    as_multiplications,
    is_pointwise,
)
from tfcompress.tflite.kernels import Method, Stored, store
from tfcompress.tflite.markers import Marked, Unit, is_learned
from tfcompress.tflite.operators import INT4_KERNELS, KERNELS, Way, way
from tfcompress.tflite.quantizer import DYNAMIC, INT16, Kernel, Mode
from tfcompress.tflite.request import Choice, Request

# The operators whose 4-bit kernels are worth having, by target.
_INT4 = {
    "xnnpack": ("FULLY_CONNECTED",),
    "tflm": ("CONV_2D", "DEPTHWISE_CONV_2D"),
    "reference": INT4_KERNELS,
}
# How often a run may use each weight: kernels over large maps take much time and have few weights.
_MOST_USES = 1024


@dataclasses.dataclass(frozen=True)
class Shortfall:
    """A layer that is not what was asked for: what its operator is instead, and why."""

    layer: str
    operator: str
    wanted: str
    got: str
    reason: str

    def __str__(self) -> str:
        return f"'{self.layer}' ({self.operator}) is {self.got}, not {self.wanted}: {self.reason}"


class Plan:
    """Decides for each operator the mode in which it computes.

    `content` is the float file, with operators in place of those that have no such kernel.
    """

    def __init__(
        self,
        model: keras.Model,
        marked: Marked,
        units: Sequence[Unit],
        request: Request,
    ):
        choices = request.choices(units)
        self.name, self.marked = model.name, marked
        self.shortfalls: list[Shortfall] = []
        self.request = request
        self.choices = [
            self._with_learned_weights(unit, choices[unit.layer_path if unit else ""])
            for unit in marked.units
        ]
        self.content = self._with_kernels(marked.content)
        self.file = fb.parse(self.content)
        self.operators = self.file.subgraphs[0].operators
        self.learned = _learned(self.file, marked)
        self.modes = [self._mode(number) for number in range(len(self.operators))]
        self._mention_rules_without_effect(units)
        self._mention_blocks()

    def _with_kernels(self, content: bytes) -> bytes:
        file = fb.parse(content)
        products, multiplications = [], []
        for number, choice in enumerate(self.choices):
            op = file.subgraphs[0].operators[number]
            fast = choice.mode.weights == "int4" and self.request.target == "xnnpack"
            if fast and is_pointwise(file, op) and (choice.asked or _uses(file, op) <= _MOST_USES):
                products.append(number)
            if choice.mode.bits and fb.operator_name(file, op) in MULTIPLICATIONS:
                multiplications.append(number)
        return as_multiplications(as_matrix_products(content, products), multiplications)

    def layer(self, number: int) -> str:
        """Returns the layer of an operator, for messages."""
        unit = self.marked.units[number]
        return unit.layer_path if unit else f"operator {number}"

    def maker(self, tensor: int) -> str:
        """Returns what puts a tensor out, for messages."""
        makers = (n for n, operator in enumerate(self.operators) if tensor in operator.outputs)
        number = next(makers, None)
        return "an input" if number is None else f"'{self.layer(number)}'"

    def operator(self, number: int) -> str:
        return fb.operator_name(self.file, self.operators[number])

    def kernels(self) -> list[int]:
        """Returns the operators whose kernel is stored in integers."""
        return [
            number
            for number, mode in enumerate(self.modes)
            if mode.weight_bits and self.operator(number) in KERNELS
        ]

    def looking(self) -> list[int]:
        """Returns the kernels whose rounding looks at the layer's inputs."""
        return [
            number
            for number in self.kernels()
            if self.choices[number].method.needs_inputs and self.learned_kernel(number) is None
        ]

    def rounding(self, number: int) -> str:
        """Returns what an operator's kernel is rounded by, for messages."""
        return type(self.choices[number].method.rounding).__name__

    def nearest(self, kernel: Kernel) -> Stored:
        """Returns a kernel in 8 bits, to try ranges with: one fitted to the samples, or of 4 bits,
        has errors that ranges would make up for, and those of other samples are others."""
        name = self.operator(kernel.number)
        return store(kernel.weights, name, 8, Method(), None, kernel.bias, kernel.input_scale)

    def _mode(self, number: int) -> Mode:
        choice = self._with_learned_bits(number, self.choices[number])
        name = self.operator(number)
        mode = choice.mode
        if mode.weights == "int4":
            mode = self._int4(number, name, choice)
        if name not in KERNELS:
            mode = mode if mode.bits else Mode()
        reason = quantizer.why_not(self.file, self.operators[number], mode)
        if reason:
            wanted = mode.weights if name in KERNELS else mode.activations
            self._fall_short(number, wanted, "float32", reason)
            return Mode()
        if choice.skip and name in KERNELS:
            self._fall_short(number, "int8", "float32", choice.skip)
        return mode

    def _with_learned_weights(self, unit: Unit | None, choice: Choice) -> Choice:
        """Returns the choice; in a mixed file without a rule, with the kernel's learned bits."""
        if self.request.scheme != "mixed" or choice.asked:
            return choice
        four = unit is not None and is_learned(unit.operation)
        four = four and unit.operation.quantization()[2] <= 4  # type: ignore[union-attr]
        mode = dataclasses.replace(choice.mode, weights="int4") if four else choice.mode
        return dataclasses.replace(choice, mode=mode)

    def _with_learned_bits(self, number: int, choice: Choice) -> Choice:
        """Returns the choice; in a mixed file without a rule, with the tensors' learned bits."""
        if self.request.scheme != "mixed" or choice.asked:
            return choice
        made = [self.learned.get(int(tensor)) for tensor in self.operators[number].outputs]
        wide = any(found is not None and found[2] > 8 for found in made)
        return dataclasses.replace(choice, mode=Mode("int8", INT16)) if wide else choice

    def learned_kernel(self, number: int) -> tuple[Any, Any, int] | None:
        """Returns what the training has found for the operator's kernel, None if nothing."""
        unit = self.marked.units[number]
        layer = None if unit is None else unit.operation
        return layer.quantization() if is_learned(layer) else None  # type: ignore[union-attr]

    def _int4(self, number: int, name: str, choice: Choice) -> Mode:
        """Returns the mode of an int4 layer: its kernel gets 8 bits where 4 do not serve."""
        mode = choice.mode
        if name not in KERNELS:
            return mode
        fast = _INT4[self.request.target]
        possible = INT4_KERNELS if choice.asked and self.request.scheme == "mixed" else fast
        wide = dataclasses.replace(mode, weights="int8")
        if name not in possible:
            if choice.asked:
                known = ", ".join(possible)
                reason = f"there are 4-bit kernels for {known} ({self.request.target})"
                self._fall_short(number, "int4", "int8", reason)
            return wide
        if mode.activations == DYNAMIC and name == "DEPTHWISE_CONV_2D":
            self._fall_short(number, "int4", "int8", "LiteRT has no such kernel for float inputs")
            return wide
        return mode

    def _fall_short(self, number: int, wanted: str, got: str, reason: str) -> None:
        found = Shortfall(self.layer(number), self.operator(number), wanted, got, reason)
        if found not in self.shortfalls:
            self.shortfalls.append(found)

    def _mention_blocks(self) -> None:
        for number in self.kernels():
            size = self.choices[number].method.block
            inputs = self.operators[number].inputs[KERNELS[self.operator(number)].kernel]
            shape = fb.shape(self.file.subgraphs[0].tensors[int(inputs)])
            bits, name = self.modes[number].weight_bits, self.operator(number)
            if size and bits == 4 and not holds_blocks(shape, name, bits, size):
                reason = f"{shape[-1]} inputs cannot be cut into blocks of {size}"
                self._fall_short(number, "blockwise", "per_channel", reason)

    def _mention_rules_without_effect(self, units: Sequence[Unit]) -> None:
        present = {unit.layer_path for unit in self.marked.units if unit}
        for rule in self.request.rules:
            found = rules.resolve([rule], units, rule, kind="layer")
            paths = {unit.layer_path for unit in units if found[unit.path]}
            if paths and not paths & present:
                reason = "another layer's operator computes what its layers compute"
                wanted = rule.get("scheme", "as it says")
                found_none = Shortfall(rule["layers"], "rule", wanted, "without effect", reason)
                self.shortfalls.append(found_none)


def holds_blocks(shape: tuple[int, ...], name: str, bits: int, size: int) -> bool:
    """Returns whether an operator's kernel can have a scale for each block of so many inputs."""
    return bits == 4 and name == "FULLY_CONNECTED" and shape[-1] % size == 0


def _uses(file: schema.ModelT, op: schema.OperatorT) -> int:
    """Returns how often one run uses each weight of a pointwise convolution."""
    return int(np.prod(fb.shape(file.subgraphs[0].tensors[int(op.outputs[0])])[:3]))


def _learned(file: schema.ModelT, marked: Marked) -> dict[int, tuple[float, float, int]]:
    """Returns (low, high, bits) of the tensors that were rounded in training.

    So are those on the same grid, before and behind operators that only move numbers.
    """
    learned = {}
    for tensor, rounded in marked.ranges.items():
        low, high, bits = rounded.quantization()
        learned[tensor] = float(low), float(high), int(bits)
    if not learned:
        return learned
    main = file.subgraphs[0]
    moves = [o for o in main.operators if way(fb.operator_name(file, o)) is Way.SAME]
    forth = [(_data(file, o), int(made)) for o in moves for made in o.outputs]
    for known, other in (*forth, *((made, data) for data, made in reversed(forth))):
        if known in learned and other not in learned and other >= 0:
            learned[other] = learned[known]
    return learned


def _data(file: schema.ModelT, op: schema.OperatorT) -> int:
    """Returns the tensor whose numbers an operator moves, -1 if they are no floats."""
    tensors = file.subgraphs[0].tensors
    return next((int(i) for i in op.inputs if fb.type_name(tensors[int(i)]) == "FLOAT32"), -1)
