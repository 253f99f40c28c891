"""Where the arrays lie in a `.tflite`, `.keras` or `.h5` file."""

import dataclasses
import io
import math
import zipfile
from collections.abc import Iterator

import h5py
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.errors import InputError
from tfcompress.tflite import flatbuffer as fb
from tfcompress.tflite.macs import KERNEL_INPUT

_LEAST_BYTES = 24  # smaller arrays are left in the structure
NIBBLES = 0
# Types that hold elements of so many bytes, whatever they mean; nibbles take a byte each.
ITEMS = {NIBBLES: np.int8, 1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}
_LOCAL_HEADER = 30
_ZIP, _H5, _NPY = b"PK\x03\x04", b"\x89HDF\r\n\x1a\n", b"\x93NUMPY"


@dataclasses.dataclass(frozen=True)
class Segment:
    """`length` bytes from `start`: elements of `item` bytes (0: two to a byte), in rows.

    name: for the reader of a report. columns: elements in a row; the rows are output channels in
    a `.tflite` file. factor: the segment is float32 and equals this times the one from `base`.
    """

    start: int
    length: int
    item: int
    columns: int
    name: str = ""
    base: int = -1
    factor: float = 0.0

    @property
    def elements(self) -> int:
        return self.length // self.item if self.item else 2 * self.length

    def values(self, content: bytes) -> np.ndarray:
        """Returns the elements (n,) in `content`, as integers."""
        raw: np.ndarray = np.frombuffer(content, np.uint8, self.length, self.start)
        if self.item == NIBBLES:
            raw = np.stack([raw & 15, raw >> 4], axis=1).reshape(-1)
        return raw.view(ITEMS[self.item])

    def put(self, content: np.ndarray, values: np.ndarray) -> None:
        """Writes the elements (n,) to their place in `content` (uint8)."""
        raw: np.ndarray = values.view(np.uint8)
        if self.item == NIBBLES:
            raw = raw[0::2] & 15 | raw[1::2] << 4
        content[self.start : self.start + self.length] = raw


def find(content: bytes) -> list[Segment]:
    """Returns the arrays of a file of either kind, by place; they do not overlap.

    Raises:
        InputError: the content is of another kind, truncated or corrupt.
    """
    if content[4:8] == fb.IDENTIFIER:
        found = _in_flatbuffer(content)
    elif content[:4] == _ZIP or content[:8] == _H5:
        found = _in_keras(content)
    else:
        raise InputError(
            "pack takes the content of a .tflite, .keras or .h5 file. "
            f"Received: {len(content)} bytes of another kind."
        )
    by_place = sorted({s.start: s for s in reversed(found) if s.length >= _LEAST_BYTES}.items())
    kept: list[Segment] = []
    for start, segment in by_place:
        if start + segment.length <= len(content) and (
            not kept or start >= kept[-1].start + kept[-1].length
        ):
            kept.append(segment)
    plain = {segment.start for segment in kept if segment.base < 0}
    return [s if s.base in plain else dataclasses.replace(s, base=-1, factor=0.0) for s in kept]


def _in_flatbuffer(content: bytes) -> list[Segment]:
    model = fb.parse(content)
    root = schema.Model.GetRootAs(content, 0)
    found: list[Segment] = []
    number = -1
    for which, graph in enumerate(model.subgraphs):
        packed = root.Subgraphs(which)
        names: dict[int, str] = {}
        for operator in graph.operators or []:
            number += 1
            word = fb.operator_name(model, operator)
            for place, tensor in enumerate([] if operator.inputs is None else operator.inputs):
                part = "kernel" if KERNEL_INPUT.get(word) == place else f"input {place}"
                names.setdefault(int(tensor), f"{number} {word} {part}")
        for index, tensor in enumerate(graph.tensors or []):
            name = names.get(index, f"tensor {index}")
            found += _constant(root, tensor, name)
            found += _scales(packed.Tensors(index), name)
        found = _with_products(packed, graph, found)
    return found


def _constant(root, tensor: schema.TensorT, name: str) -> Iterator[Segment]:
    buffer = root.Buffers(tensor.buffer)
    if not buffer.DataLength():
        return
    start, length = _vector(buffer, 4), buffer.DataLength()
    shape, kind = fb.shape(tensor), fb.type_name(tensor)
    rows = shape[0] if len(shape) > 1 else 1
    if kind == "INT4":
        yield Segment(start, length, NIBBLES, max(2 * length // max(rows, 1), 1), name)
        return
    item = 1 if kind not in fb.DTYPES else np.dtype(fb.DTYPES[kind]).itemsize
    if length % item == 0:
        yield Segment(start, length, item, max(length // item // max(rows, 1), 1), name)


def _scales(tensor, name: str) -> Iterator[Segment]:
    q = tensor.Quantization()
    if q is None:
        return
    for field, length, item, what in (
        (8, q.ScaleLength(), 4, "scales"),
        (10, q.ZeroPointLength(), 8, "zero points"),
    ):
        if length:
            yield Segment(_vector(q, field), item * length, item, length, f"{name} {what}")


def _with_products(packed, graph: schema.SubGraphT, found: list[Segment]) -> list[Segment]:
    """Marks the scales of biases: those of the input times those of the kernel, in float32."""
    by_start = {segment.start: segment for segment in found}
    for operator in graph.operators or []:
        inputs = [] if operator.inputs is None else [int(i) for i in operator.inputs]
        if len(inputs) != 3 or min(inputs) < 0:
            continue
        records = [graph.tensors[i].quantization for i in inputs]
        scales = [np.array([]) if q is None or q.scale is None else q.scale for q in records]
        if len(scales[0]) != 1 or not min(map(len, scales)):
            continue
        kernel, bias = (_vector(packed.Tensors(i).Quantization(), 8) for i in inputs[1:])
        equal = len(scales[1]) == len(scales[2]) and np.array_equal(
            scales[0].astype("<f4") * scales[1], scales[2]
        )
        if equal and bias != kernel and by_start[kernel].base < 0:
            by_start[bias] = dataclasses.replace(
                by_start[bias], base=kernel, factor=float(scales[0][0])
            )
    return list(by_start.values())


def _vector(table, field: int) -> int:
    return table._tab.Vector(table._tab.Offset(field))


def _in_keras(content: bytes) -> list[Segment]:
    if content[:4] != _ZIP:
        return _in_h5(content, 0)
    found = []
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for member in archive.infolist():
                if member.compress_type != zipfile.ZIP_STORED:
                    continue
                header = content[member.header_offset :][:_LOCAL_HEADER]
                name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
                start = member.header_offset + _LOCAL_HEADER + name + extra
                whole = content[start : start + member.file_size]
                if whole[:8] == _H5:
                    found += _in_h5(whole, start)
                elif whole[:6] == _NPY:
                    found += _in_npy(whole, start, member.filename)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise InputError(f"The .keras file is truncated or corrupt: {error}.") from None
    return found


def _in_h5(content: bytes, begin: int) -> list[Segment]:
    found = []

    def visit(name: str, item) -> None:
        if not isinstance(item, h5py.Dataset) or item.dtype.kind not in "fiub":
            return
        place, size = item.id.get_offset(), item.dtype.itemsize
        if place is not None and item.size and size in (1, 2, 4, 8):
            columns = item.shape[-1] if item.shape else 1
            found.append(Segment(begin + place, item.nbytes, size, columns, name))

    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            file.visititems(visit)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"The weights of the file are truncated or corrupt: {reason}.") from None
    return found


def _in_npy(content: bytes, begin: int, name: str) -> list[Segment]:
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else None
    if read is None:
        return []
    shape, _, dtype = read(file)
    if dtype.kind not in "fiub" or dtype.itemsize not in (1, 2, 4, 8):
        return []
    length = math.prod(shape) * dtype.itemsize
    columns = shape[-1] if shape and shape[-1] else 1
    return [Segment(begin + file.tell(), length, dtype.itemsize, columns, name)]
