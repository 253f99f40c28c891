"""A `.tflite` file as objects: read, checked, written again.

The objects are those of the published schema (`ai_edge_litert.schema_py_generated`): `ModelT`
with `subgraphs`, `operatorCodes` and `buffers`; nothing is parsed by hand.
"""

import os
import pathlib
import struct

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.errors import InputError

IDENTIFIER = b"TFL3"
Flatbuffer = bytes | bytearray | str | os.PathLike

_OPERATORS = {
    code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)
}
_TYPES = {code: name for name, code in vars(schema.TensorType).items() if isinstance(code, int)}
# Since when operators that are added take the types that they are added for.
_VERSIONS = {"QUANTIZE": 2, "DEQUANTIZE": 3, "FULLY_CONNECTED": 5, "GATHER": 2}
DTYPES = {
    "FLOAT32": np.float32, "FLOAT16": np.float16, "FLOAT64": np.float64, "INT8": np.int8,
    "UINT8": np.uint8, "INT16": np.int16, "UINT16": np.uint16, "INT32": np.int32,
    "UINT32": np.uint32, "INT64": np.int64, "UINT64": np.uint64, "BOOL": np.bool_,
}  # fmt: skip


def read_bytes(flatbuffer: Flatbuffer) -> bytes:
    """Returns the file's content: `flatbuffer` itself, or what lies at that path."""
    if isinstance(flatbuffer, bytes | bytearray):
        return bytes(flatbuffer)
    if not isinstance(flatbuffer, str | os.PathLike):
        kind = type(flatbuffer).__name__
        raise InputError(f"A flatbuffer must be a path or a file's content. Received: {kind}")
    path = pathlib.Path(flatbuffer)
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"Flatbuffer {path} cannot be read: {error.strerror}.") from None


def parse(flatbuffer: Flatbuffer) -> schema.ModelT:
    """Returns the file's objects after checking that they refer to one another.

    A file that is truncated, of another kind or random bytes is an `InputError`.
    """
    content = read_bytes(flatbuffer)
    owner = f"Flatbuffer of {len(content)} bytes"
    if not isinstance(flatbuffer, bytes | bytearray):
        owner = f"Flatbuffer {os.fspath(flatbuffer)}"
    if content[4:8] != IDENTIFIER:
        raise InputError(f"{owner} must carry the identifier TFL3 of a .tflite file.")
    try:
        model = schema.ModelT.InitFromPackedBuf(content)
        _check_references(model)
    except (struct.error, ValueError, TypeError, IndexError, AttributeError, MemoryError) as error:
        raise InputError(f"{owner} is truncated or corrupt: {error}.") from None
    return model


def pack(model: schema.ModelT) -> bytes:
    """Returns the bytes of `model`; vectors with equal content are written once.

    Buffers start at multiples of 16 bytes, as the schema demands (`force_align`).
    """
    builder = _SharingBuilder(1024)
    builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def operator_name(model: schema.ModelT, operator: schema.OperatorT) -> str:
    """Returns the operator's name in the schema, such as CONV_2D, or `CUSTOM:name`."""
    code = model.operatorCodes[operator.opcodeIndex]
    # Files older than the 127th operator have only the deprecated field.
    name = _OPERATORS[max(code.builtinCode, code.deprecatedBuiltinCode)]
    return f"CUSTOM:{_text(code.customCode)}" if name == "CUSTOM" else name


def operator_code(model: schema.ModelT, name: str) -> int:
    """Returns the index of an operator's code in the model, which is added where it is missing."""
    wanted = getattr(schema.BuiltinOperator, name)
    for index, code in enumerate(model.operatorCodes):
        if max(code.builtinCode, code.deprecatedBuiltinCode) == wanted:
            return index
    code = schema.OperatorCodeT()
    code.builtinCode, code.deprecatedBuiltinCode = wanted, min(wanted, 127)
    code.version = _VERSIONS.get(name, 1)
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def type_name(tensor: schema.TensorT) -> str:
    """Returns the tensor's type in the schema, such as INT8."""
    return _TYPES[tensor.type]


def is_float(tensor: schema.TensorT) -> bool:
    return "FLOAT" in type_name(tensor)


def tensor_name(tensor: schema.TensorT) -> str:
    return _text(tensor.name)


def shape(tensor: schema.TensorT) -> tuple[int, ...]:
    return () if tensor.shape is None else tuple(int(size) for size in tensor.shape)


def scales(tensor: schema.TensorT) -> np.ndarray:
    """Returns the tensor's scales, one or one for each channel; none for what is not quantized."""
    q = tensor.quantization
    return np.zeros(0, np.float32) if q is None or q.scale is None else np.asarray(q.scale)


def block_scales(tensor: schema.TensorT) -> int | None:
    """Returns the number of the tensor that holds a kernel's scale for each block; None: none."""
    q = tensor.quantization
    details = None if q is None else q.details
    return None if details is None else int(details.scales)


def data(model: schema.ModelT, tensor: schema.TensorT) -> np.ndarray | None:
    """Returns a constant's values in its shape; None for a tensor computed at run time.

    4-bit integers come unpacked as int8; sparse constants come flat, as stored.
    """
    buffer = model.buffers[tensor.buffer].data
    if buffer is None or len(buffer) == 0:
        return None
    raw = np.asarray(buffer, dtype=np.uint8)
    name = type_name(tensor)
    if name == "INT4":
        low, high = raw << 4, raw & 0xF0  # the sign bit at the top of the byte
        values = np.stack([low, high], axis=1).reshape(-1).view(np.int8) >> 4
        values = values[: int(np.prod(shape(tensor)))]
    elif name in DTYPES:
        values = raw.view(DTYPES[name])
    else:
        return raw
    return values if tensor.sparsity is not None else values.reshape(shape(tensor))


def _check_references(model: schema.ModelT) -> None:
    if not model.subgraphs or not model.buffers:
        raise ValueError("no graph in it")
    for buffer in model.buffers:
        if buffer.offset > 1:
            raise ValueError("weights behind the flatbuffer (over 2 GB) are not supported")
    for graph in model.subgraphs:
        tensors = graph.tensors or []
        for tensor in tensors:
            if not 0 <= tensor.buffer < len(model.buffers):
                raise ValueError(f"no buffer {tensor.buffer}")
            if tensor.type not in _TYPES:
                raise ValueError(f"no type {tensor.type}")
            data(model, tensor)
        for operator in graph.operators or []:
            operator_name(model, operator)
            if operator.outputs is None:
                raise ValueError("an operator without outputs")
            _check_indices([] if operator.inputs is None else operator.inputs, -1, len(tensors))
            _check_indices(operator.outputs, 0, len(tensors))
        if graph.inputs is None or graph.outputs is None:
            raise ValueError("a graph without inputs or outputs")
        _check_indices(graph.inputs, 0, len(tensors))
        _check_indices(graph.outputs, 0, len(tensors))


def _check_indices(indices, least: int, size: int) -> None:
    for index in indices:
        if not least <= index < size:
            raise ValueError(f"no tensor {index}")


def _text(name: bytes | str | None) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else (name or "")


class _SharingBuilder(flatbuffers.Builder):
    """Writes each distinct vector once, and bytes (the buffers) aligned to 16."""

    def __init__(self, initial_size: int):
        super().__init__(initial_size)
        self._written: dict[tuple[str, bytes], int] = {}

    def CreateNumpyVector(self, x):  # noqa: N802 (the name is the base class's)
        key = (x.dtype.str, x.tobytes())
        if key not in self._written:
            if x.dtype == np.uint8:
                self.Prep(16, len(key[1]))
            self._written[key] = super().CreateNumpyVector(x)
        return self._written[key]
