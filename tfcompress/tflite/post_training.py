"""A Keras model -> a file whose integers are found here: ranges, rounding, a scheme per layer."""

import dataclasses
import functools
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress import rules
from tfcompress.errors import InputError, require
from tfcompress.quantization import GRANULARITIES, RANGES, ROUNDINGS
from tfcompress.tflite import calibration, quantizer, range_search
from tfcompress.tflite import flatbuffer as fb
from tfcompress.tflite.calibration import Ranges
from tfcompress.tflite.equivalents import (
    MULTIPLICATIONS,
    as_matrix_products,
    as_multiplications,
    is_pointwise,
)
from tfcompress.tflite.kernel_inputs import KernelInputs
from tfcompress.tflite.kernels import Method, Stored, store, stored_as_learned
from tfcompress.tflite.markers import Marked, Unit, is_learned
from tfcompress.tflite.operators import INT4_KERNELS, KERNELS, Way, way
from tfcompress.tflite.quantizer import DYNAMIC, INT16, Kernel, Mode
from tfcompress.tflite.request import Choice, Request

FEWEST_SAMPLES = 8  # for methods that look at a layer's inputs
# The operators whose 4-bit kernels are worth having, by target.
_INT4 = {
    "xnnpack": ("FULLY_CONNECTED",),
    "tflm": ("CONV_2D", "DEPTHWISE_CONV_2D"),
    "reference": INT4_KERNELS,
}
# The words that choose a kernel's integers: field of `Method` and registry of each.
_WORDS = {
    "rounding": ("rounding", ROUNDINGS),
    "weight_ranges": ("ranges", RANGES),
    "granularity": ("granularity", GRANULARITIES),
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


def quantized(
    model: keras.Model,
    marked: Marked,
    units: Sequence[Unit],
    request: Request,
    samples: Sequence[np.ndarray] | None,
) -> tuple[bytes, list[Shortfall]]:
    """Returns the file that the request asks for, and what it could not hold.

    Args:
        model: the user's, for messages.
        marked: its float file; units: what the rules may select, as `markers.units` returns them.
        samples: for each input an array (n, ...); None where nothing has to be calibrated.
    """
    plan = _Plan(model, marked, units, request)
    _mention_words_without_effect(plan, request)
    _check_samples(model, plan, samples)
    ranges = _ranges(plan, request, samples)
    if request.search_ranges and samples is not None and not marked.ranges:
        write = functools.partial(quantizer.quantize, plan.content, plan.modes, store=plan.nearest)
        ranges = range_search.search(write, ranges, plan.content, samples)
    stores = _Stores(plan, samples)
    return quantizer.quantize(plan.content, plan.modes, ranges, stores), plan.shortfalls


class _Plan:
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
        self._request = request
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
            fast = choice.mode.weights == "int4" and self._request.target == "xnnpack"
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
        if self._request.scheme != "mixed" or choice.asked:
            return choice
        four = unit is not None and is_learned(unit.operation)
        four = four and unit.operation.quantization()[2] <= 4  # type: ignore[union-attr]
        mode = dataclasses.replace(choice.mode, weights="int4") if four else choice.mode
        return dataclasses.replace(choice, mode=mode)

    def _with_learned_bits(self, number: int, choice: Choice) -> Choice:
        """Returns the choice; in a mixed file without a rule, with the tensors' learned bits."""
        if self._request.scheme != "mixed" or choice.asked:
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
        fast = _INT4[self._request.target]
        possible = INT4_KERNELS if choice.asked and self._request.scheme == "mixed" else fast
        wide = dataclasses.replace(mode, weights="int8")
        if name not in possible:
            if choice.asked:
                known = ", ".join(possible)
                reason = f"there are 4-bit kernels for {known} ({self._request.target})"
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
            if size and bits == 4 and not _holds_blocks(shape, name, bits, size):
                reason = f"{shape[-1]} inputs cannot be cut into blocks of {size}"
                self._fall_short(number, "blockwise", "per_channel", reason)

    def _mention_rules_without_effect(self, units: Sequence[Unit]) -> None:
        present = {unit.layer_path for unit in self.marked.units if unit}
        for rule in self._request.rules:
            found = rules.resolve([rule], units, rule, kind="layer")
            paths = {unit.layer_path for unit in units if found[unit.path]}
            if paths and not paths & present:
                reason = "another layer's operator computes what its layers compute"
                wanted = rule.get("scheme", "as it says")
                found_none = Shortfall(rule["layers"], "rule", wanted, "without effect", reason)
                self.shortfalls.append(found_none)


def _mention_words_without_effect(plan: _Plan, request: Request) -> None:
    """Says which words choose no integers, since the training has."""
    learned = {n: found for n in plan.kernels() if (found := plan.learned_kernel(n)) is not None}
    words = [
        name
        for name in _WORDS
        if any(_own(plan.choices[number].method, name) for number in learned)
    ]
    if plan.marked.ranges:
        words += [name for name in ("ranges", "search_ranges") if getattr(request, name)]
    if words:
        warnings.warn(
            f"Model '{plan.name}' was trained by quantize_aware, which has chosen its integers: "
            f"{', '.join(words)} has no effect on them",
            stacklevel=5,
        )
    narrow = {plan.layer(n) for n, found in learned.items() if plan.modes[n].weight_bits < found[2]}
    if narrow:
        warnings.warn(
            f"Model '{plan.name}' was trained with more bits than its file's kernels have, which "
            f"are rounded again: {', '.join(sorted(narrow))}. quantize_aware(bits=4) trains 4",
            stacklevel=5,
        )


def _own(method: Method, name: str) -> bool:
    """Returns whether a word of the method is not what it is by default."""
    field, registry = _WORDS[name]
    return registry.create(getattr(method, field)) != registry.create(getattr(Method(), field))


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


def _check_samples(model: keras.Model, plan: _Plan, samples: Sequence[np.ndarray] | None) -> None:
    looking = [
        number
        for number in plan.kernels()
        if plan.choices[number].method.needs_inputs and plan.learned_kernel(number) is None
    ]
    learned = bool(plan.marked.ranges)
    if samples is None and any(mode.bits for mode in plan.modes) and not learned:
        raise InputError(
            f"Scheme {plan._request.scheme} needs samples (a command: --data) to take the "
            "activations' ranges from, unless quantize_aware has trained these too. "
            "Received: none"
        )
    if not looking:
        return
    rounding = type(plan.choices[looking[0]].method.rounding).__name__
    count = 0 if samples is None else len(samples[0])
    rule = f"needs at least {FEWEST_SAMPLES} samples: it looks at the layers' inputs"
    require(count >= FEWEST_SAMPLES, f"Rounding {rounding}", rule, samples=count)
    corrected = getattr(model, "bias_correction", None)
    if corrected is not None and corrected.rounding:
        warnings.warn(
            f"Biases of model '{model.name}' make up for the mean error of rounding "
            f"{corrected.rounding}, which {rounding} does not make: give convert the model as it "
            "was before correct_bias",
            stacklevel=5,
        )


def _ranges(plan: _Plan, request: Request, samples: Sequence[np.ndarray] | None) -> Ranges:
    """Returns the ranges of all tensors that integer operators read or make."""
    main = plan.file.subgraphs[0]
    wanted = {
        int(tensor)
        for op, mode in zip(plan.operators, plan.modes, strict=True)
        for tensor in (*op.inputs, *op.outputs)
        if mode.bits
        and tensor >= 0
        and fb.type_name(main.tensors[tensor]) == "FLOAT32"
        and fb.data(plan.file, main.tensors[tensor]) is None
    }
    learned = {tensor: (low, high) for tensor, (low, high, _) in plan.learned.items()}
    for number, unit in enumerate(plan.marked.units):
        if plan.operator(number) == "PRELU" and unit is not None and is_learned(unit.operation):
            # Its weights are an input like others: the range whose steps are those learned.
            scale = float(np.max(unit.operation.quantization()[1]))
            learned[int(plan.operators[number].inputs[1])] = (-128 * scale, 127 * scale)
    if not wanted or samples is None:
        return Ranges(learned=learned)
    unknown = sorted(wanted - set(learned))
    method = request.ranges or "min_max"
    ranges = calibration.observed(plan.content, unknown, samples, method, learned, plan.maker)
    bounds = {tensor: ranges.of(tensor, 8) for tensor in ranges.observed}
    dead = dict.fromkeys(plan.maker(t) for t, (low, high) in bounds.items() if not low < high)
    if dead:
        warnings.warn(
            f"Activations of model '{plan.name}' are 0 for all samples: {', '.join(dead)}. Their "
            "ranges are guessed: give other samples, or remove what is dead",
            stacklevel=5,
        )
    return ranges


class _Stores:
    """Gives each kernel its integers, in the operators' order."""

    def __init__(self, plan: _Plan, samples: Sequence[np.ndarray] | None):
        self._plan = plan
        self._inputs = KernelInputs(plan.file, samples or (), plan.layer)

    def __call__(self, kernel: Kernel) -> Stored:
        plan, number = self._plan, kernel.number
        method, bits = plan.choices[number].method, plan.modes[number].weight_bits
        name, weights = plan.operator(number), kernel.weights
        if method.block and not _holds_blocks(weights.shape, name, bits, method.block):
            method = dataclasses.replace(method, granularity="per_channel")
        learned = plan.learned_kernel(number)
        if learned is not None and learned[2] <= bits:
            stored = stored_as_learned(weights, name, learned[1], bits)
        else:
            inputs = self._inputs.of(kernel) if method.needs_inputs else None
            stored = store(weights, name, bits, method, inputs, kernel.bias, kernel.input_scale)
        if name == "DEPTHWISE_CONV_2D" and plan.modes[number].activations == DYNAMIC:
            # Its kernel reads a scale for each channel, also where there is but one.
            scale = np.broadcast_to(stored.scale, weights.shape[-1:]).copy()
            stored = dataclasses.replace(stored, scale=scale)
        return stored


def _holds_blocks(shape: tuple[int, ...], name: str, bits: int, size: int) -> bool:
    return bits == 4 and name == "FULLY_CONNECTED" and shape[-1] % size == 0
