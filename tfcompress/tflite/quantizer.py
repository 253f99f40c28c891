"""A float `.tflite` file -> one whose operators compute as each was told to.

Every operator of the main graph has a `Mode`. Integer operators get their tensors on the grids that
LiteRT's kernels want; where two neighbours disagree, a QUANTIZE or DEQUANTIZE goes in between.
"""

import copy
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.quantization.grid import Grid
from tfcompress.tflite import flatbuffer as fb
from tfcompress.tflite.calibration import Ranges
from tfcompress.tflite.grids import Grids
from tfcompress.tflite.kernels import Stored
from tfcompress.tflite.operators import KERNELS, OPERATORS, Places

FLOAT32, DYNAMIC, INT8, INT16 = "float32", "dynamic", "int8", "int16"
_BITS = {"int4": 4, "int8": 8, "int16": 16}
_TYPES = schema.TensorType
_INTEGERS = {4: _TYPES.INT4, 8: _TYPES.INT8, 16: _TYPES.INT16, 32: _TYPES.INT32, 64: _TYPES.INT64}


@dataclasses.dataclass(frozen=True)
class Mode:
    """How an operator computes.

    weights: how its kernel is stored: "float32", "float16", "int8" or "int4".
    activations: "float32" (stored weights are unpacked first), "dynamic" (floats that the kernel
        itself quantizes), "int8" or "int16".
    """

    weights: str = "float32"
    activations: str = FLOAT32

    @property
    def weight_bits(self) -> int:
        """8 or 4; 0 where the kernel is stored in floats."""
        return _BITS.get(self.weights, 0)

    @property
    def bits(self) -> int:
        """Of the activations, 8 or 16; 0 where they are floats."""
        return _BITS.get(self.activations, 0)


@dataclasses.dataclass(frozen=True, eq=False)
class Kernel:
    """A float kernel whose integers are wanted, and where it stands.

    number: of its operator in the float file. bias: float; None if it has none. input_scale: that
    of the integers that it is multiplied with, 0 where they are floats. written, operators: the
    file as far as it is written, up to `data`, the tensor that the kernel is multiplied with.
    """

    number: int
    weights: np.ndarray
    bias: np.ndarray | None
    input_scale: float
    written: schema.ModelT
    operators: list[schema.OperatorT]
    data: int


Store = Callable[[Kernel], Stored]


def why_not(model: schema.ModelT, operator: schema.OperatorT, mode: Mode) -> str:
    """Returns why the operator cannot compute so, "" if it can."""
    name = fb.operator_name(model, operator)
    main = model.subgraphs[0]
    if name in KERNELS:
        places = KERNELS[name]
        if fb.data(model, main.tensors[int(operator.inputs[places.kernel])]) is None:
            return "its weights are computed at run time"
        bias = _bias(operator, places)
        if bias is not None and fb.data(model, main.tensors[bias]) is None:
            return "its bias is computed at run time"
        if mode.activations == DYNAMIC and name == "TRANSPOSE_CONV":
            return "LiteRT has no kernel TRANSPOSE_CONV for float inputs and integer weights"
    if not mode.bits:
        return ""
    floats = [int(i) for i in (*operator.inputs, *operator.outputs) if i >= 0]
    if not any(fb.type_name(main.tensors[i]) == "FLOAT32" for i in floats):
        return ""
    if name not in OPERATORS or mode.bits not in OPERATORS[name].bits:
        return f"LiteRT has no kernel {name} for {mode.bits}-bit integers"
    return ""


def quantize(content: bytes, modes: Sequence[Mode], ranges: Ranges, store: Store) -> bytes:
    """Returns the file with each operator of the main graph in its mode.

    Args:
        content: a float file.
        modes: one for each operator, none of which `why_not` objects to.
        ranges: those of all tensors that integer operators read and make.
        store: gives the integers of a kernel.

    The file's inputs and outputs are integers where the operators are that read and make them.
    """
    return _Writer(fb.parse(content), modes, ranges, store).written()


class _Writer:
    """Rewrites the main graph, operator by operator."""

    def __init__(self, model: schema.ModelT, modes: Sequence[Mode], ranges: Ranges, store: Store):
        self._model, self._main = model, model.subgraphs[0]
        self._modes, self._store = modes, store
        self._bits = [
            mode.bits if self._has_floats(operator) else 0
            for mode, operator in zip(modes, self._main.operators, strict=True)
        ]
        self._grids = Grids(model, self._bits, ranges)
        self._floats = [fb.data(model, tensor) for tensor in self._main.tensors]
        self._native: dict[int, Grid | None] = {}
        self._converted: dict[tuple, int] = {}
        self._operators: list[schema.OperatorT] = []

    def written(self) -> bytes:
        for tensor in map(int, self._main.inputs):
            self._make(tensor, self._of_input(tensor))
        for number, operator in enumerate(list(self._main.operators)):
            mode = self._modes[number]
            operator = copy.copy(operator)
            operator.inputs = [int(i) for i in operator.inputs]
            if self._bits[number]:
                self._integer(number, operator, mode)
            else:
                self._float(number, operator, mode)
            self._operators.append(operator)
            for tensor in self._grids.made(number):
                grid = self._grids.of(tensor, self._bits[number]) if self._bits[number] else None
                self._make(tensor, grid)
        self._main.operators = self._operators
        _drop_unread(self._main)
        return fb.pack(self._model)

    def _integer(self, number: int, operator: schema.OperatorT, mode: Mode) -> None:
        name = fb.operator_name(self._model, operator)
        data = set(self._grids.data(number))
        for place, tensor in enumerate(operator.inputs):
            if tensor in data:
                operator.inputs[place] = self._on(tensor, self._grids.wanted(number, tensor))
        if name in KERNELS:
            places = KERNELS[name]
            scale = float(self._grids.wanted(number, next(iter(data))).scale)
            self._store_kernel(number, operator, places, scale, mode)

    def _float(self, number: int, operator: schema.OperatorT, mode: Mode) -> None:
        name = fb.operator_name(self._model, operator)
        for place, tensor in enumerate(operator.inputs):
            if self._native.get(tensor) is not None:
                operator.inputs[place] = self._on(tensor, None)
        if name in KERNELS and mode.weights == "float16":
            for place in (KERNELS[name].kernel, KERNELS[name].bias):
                if place < len(operator.inputs) and operator.inputs[place] >= 0:
                    operator.inputs[place] = self._half(operator.inputs[place])
        elif name in KERNELS and mode.weight_bits:
            self._store_kernel(number, operator, KERNELS[name], 0.0, mode)

    def _store_kernel(
        self, number: int, operator: schema.OperatorT, places: Places, scale: float, mode: Mode
    ) -> None:
        """Puts the kernel's integers in; with `scale`, that of the inputs, the bias' too."""
        tensor = operator.inputs[places.kernel]
        place = _bias(operator, places)
        bias = None if place is None else self._floats[place]
        so_far = self._model, self._operators, operator.inputs[places.data]
        stored = self._store(Kernel(number, self._floats[tensor], bias, scale, *so_far))
        new = self._new(self._main.tensors[tensor], _INTEGERS[stored.bits])
        self._fill(new, pack_int4(stored.codes) if stored.bits == 4 else stored.codes, np.int8)
        self._main.tensors[new].quantization = self._record(stored, places)
        operator.inputs[places.kernel] = new
        if mode.activations == FLOAT32:
            operator.inputs[places.kernel] = self._apply("DEQUANTIZE", new, _TYPES.FLOAT32)
        elif mode.activations == DYNAMIC and hasattr(
            operator.builtinOptions, "asymmetricQuantizeInputs"
        ):
            operator.builtinOptions.asymmetricQuantizeInputs = True
        if place is None or bias is None:
            return
        if scale:
            bias = bias if stored.bias is None else stored.bias
            operator.inputs[places.bias] = self._integer_bias(place, bias, stored, scale, mode.bits)
        elif stored.bias is not None:
            operator.inputs[places.bias] = self._new(self._main.tensors[place], _TYPES.FLOAT32)
            self._fill(operator.inputs[places.bias], stored.bias, np.float32)

    def _integer_bias(
        self, tensor: int, bias: np.ndarray, stored: Stored, scale: float, bits: int
    ) -> int:
        steps = scale * stored.scale.astype(np.float32).astype(np.float64)
        wide = 64 if bits == 16 else 32
        codes = np.rint(bias.astype(np.float64) / steps)
        dtype = np.int64 if wide == 64 else np.int32
        limits = np.iinfo(np.int32)
        new = self._new(self._main.tensors[tensor], _INTEGERS[wide])
        self._fill(new, np.clip(codes, limits.min, limits.max), dtype)
        self._main.tensors[new].quantization = _parameters(steps, np.zeros(steps.shape))
        return new

    def _record(self, stored: Stored, places: Places) -> schema.QuantizationParametersT:
        if not stored.block:
            record = _parameters(stored.scale, np.zeros(stored.scale.shape))
            record.quantizedDimension = places.channels if stored.scale.size > 1 else 0
            return record
        template = schema.TensorT()
        template.shape = np.array(stored.scale.shape, np.int32)
        scales = self._new(template, _TYPES.FLOAT16)
        self._fill(scales, stored.scale, np.float16)
        record = schema.QuantizationParametersT()
        record.detailsType = schema.QuantizationDetails.BlockwiseQuantization
        record.details = schema.BlockwiseQuantizationT()
        record.details.scales, record.details.zeroPoints = scales, -1
        record.details.blockSize = stored.block
        record.quantizedDimension = 0
        return record

    def _on(self, tensor: int, grid: Grid | None) -> int:
        """Returns a tensor with the same numbers on the grid, or in float."""
        constant = self._floats[tensor]
        native = self._native.get(tensor)
        if _key(native) == _key(grid):
            return tensor
        key = (tensor, _key(grid))
        if key in self._converted:
            return self._converted[key]
        if constant is not None and grid is not None:
            new = self._new(self._main.tensors[tensor], _INTEGERS[grid.codes.bits])
            dtype = np.int8 if grid.codes.bits == 8 else np.int16
            self._fill(new, grid.clip(np.rint(grid.steps(constant))), dtype)
            self._main.tensors[new].quantization = _parameters(grid.scale, grid.zero_point)
        elif grid is None:
            new = self._apply("DEQUANTIZE", tensor, _TYPES.FLOAT32)
        else:
            new = self._apply("QUANTIZE", tensor, _INTEGERS[grid.codes.bits])
            self._main.tensors[new].quantization = _parameters(grid.scale, grid.zero_point)
        self._converted[key] = new
        return new

    def _half(self, tensor: int) -> int:
        key = (tensor, "half")
        if key not in self._converted:
            half = self._new(self._main.tensors[tensor], _TYPES.FLOAT16)
            self._fill(half, np.asarray(self._floats[tensor]), np.float16)
            self._converted[key] = self._apply("DEQUANTIZE", half, _TYPES.FLOAT32)
        return self._converted[key]

    def _make(self, tensor: int, grid: Grid | None) -> None:
        """Notes on which grid a tensor is made, and types it so."""
        self._native[tensor] = grid
        if grid is not None:
            self._main.tensors[tensor].type = _INTEGERS[grid.codes.bits]
            self._main.tensors[tensor].quantization = _parameters(grid.scale, grid.zero_point)

    def _of_input(self, tensor: int) -> Grid | None:
        """Returns the grid of an input of the file: that of its readers, if they agree."""
        readers = [
            number
            for number, operator in enumerate(self._main.operators)
            if tensor in map(int, operator.inputs)
        ]
        bits = {self._bits[number] for number in readers}
        if bits == {0} or len(bits) != 1 or fb.type_name(self._main.tensors[tensor]) != "FLOAT32":
            return None
        wanted = [self._grids.wanted(number, tensor) for number in readers]
        return wanted[0] if len({_key(grid) for grid in wanted}) == 1 else None

    def _apply(self, name: str, tensor: int, kind: int) -> int:
        """Appends an operator of one input; returns its output."""
        new = self._new(self._main.tensors[tensor], kind)
        operator = schema.OperatorT()
        operator.opcodeIndex = fb.operator_code(self._model, name)
        operator.inputs, operator.outputs = [tensor], [new]
        self._operators.append(operator)
        return new

    def _new(self, like: schema.TensorT, kind: int) -> int:
        """Adds an empty tensor of the type, of another's shape and name."""
        tensor = schema.TensorT()
        tensor.shape, tensor.name, tensor.hasRank = like.shape, like.name, True
        tensor.shapeSignature = like.shapeSignature
        tensor.type, tensor.buffer = kind, 0
        self._main.tensors.append(tensor)
        self._floats.append(None)
        return len(self._main.tensors) - 1

    def _fill(self, tensor: int, values: np.ndarray, dtype: type) -> None:
        buffer = schema.BufferT()
        raw = np.asarray(values, dtype).tobytes()
        buffer.data = np.frombuffer(raw, np.uint8)
        self._model.buffers.append(buffer)
        self._main.tensors[tensor].buffer = len(self._model.buffers) - 1

    def _has_floats(self, operator: schema.OperatorT) -> bool:
        tensors = [int(i) for i in (*operator.inputs, *operator.outputs) if i >= 0]
        return any(fb.is_float(self._main.tensors[i]) for i in tensors)


def _drop_unread(graph: schema.SubGraphT) -> None:
    """Takes out tensors that nothing refers to, and numbers the others anew."""
    used = {*map(int, graph.inputs), *map(int, graph.outputs)}
    for operator in graph.operators:
        used.update(int(i) for i in (*operator.inputs, *operator.outputs) if i >= 0)
    blockwise = [
        tensor.quantization.details
        for number, tensor in enumerate(graph.tensors)
        if number in used and tensor.quantization and tensor.quantization.details
    ]
    used.update(details.scales for details in blockwise)
    numbers = {old: new for new, old in enumerate(sorted(used))} | {-1: -1}
    graph.tensors = [graph.tensors[old] for old in sorted(used)]
    for operator in graph.operators:
        operator.inputs = [numbers[int(i)] for i in operator.inputs]
        operator.outputs = [numbers[int(i)] for i in operator.outputs]
    for details in blockwise:
        details.scales = numbers[details.scales]
    graph.inputs = [numbers[int(i)] for i in graph.inputs]
    graph.outputs = [numbers[int(i)] for i in graph.outputs]


def pack_int4(codes: np.ndarray) -> np.ndarray:
    """Returns 4-bit codes two to a byte, the first in the low half, int8."""
    flat = np.asarray(codes, np.int8).ravel()
    flat = np.append(flat, np.zeros(flat.size % 2, np.int8))
    return ((flat[0::2] & 0xF) | ((flat[1::2] & 0xF) << 4)).astype(np.int8)


def _bias(operator: schema.OperatorT, places: Places) -> int | None:
    """Returns the tensor of the operator's bias, None if it has none."""
    inputs = operator.inputs
    present = places.bias < len(inputs) and inputs[places.bias] >= 0
    return int(inputs[places.bias]) if present else None


def _parameters(scale: np.ndarray, zero_point: np.ndarray) -> schema.QuantizationParametersT:
    record = schema.QuantizationParametersT()
    record.scale = np.atleast_1d(np.asarray(scale, np.float32))
    record.zeroPoint = np.atleast_1d(np.asarray(zero_point, np.int64))
    return record


def _key(grid: Grid | None) -> tuple | None:
    return None if grid is None else (float(grid.scale), int(grid.zero_point), grid.codes.bits)
