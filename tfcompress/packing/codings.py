"""How the values of one tensor are coded; for each tensor the smallest wins.

A coding is a frozen dataclass whose fields are what the decoder must be told; `code(coder, values,
shape)` runs in both directions. Values are integers of 1, 2, 4 or 8 bytes, whatever they mean:
floats are taken by their bits.
"""

import dataclasses
from typing import ClassVar

import numpy as np

from tfcompress.errors import InputError
from tfcompress.packing.coder import (
    ALL_BYTE_CONTEXTS,
    ALL_SYMBOL_CONTEXTS,
    FEW_BYTE_CONTEXTS,
    FEW_SYMBOL_CONTEXTS,
)

MOST_INDEXED = 256
_MANY = 1 << 20  # beyond, contexts take too long: dense tensors of that size gain little from them
_LOOKS_RANDOM = 7.95  # bits of a byte


@dataclasses.dataclass(frozen=True)
class Bytes:
    """The bytes of the elements, predicted from those before and above.

    flat: mask of places within an element whose bytes are stored; contexts: 2 or 8.
    """

    name: ClassVar[str] = "bytes"
    flat: int
    contexts: int

    def code(self, coder, values, columns):
        data = values.view(np.uint8)
        found = coder.bytes(data, values.itemsize, self.flat, self.contexts)
        return np.ascontiguousarray(found).view(values.dtype)

    def numbers(self):
        return [self.flat, self.contexts]

    @classmethod
    def read(cls, reader, dtype):
        flat, contexts = reader.number(255), reader.number(ALL_BYTE_CONTEXTS)
        return cls(flat, max(contexts, 1))


@dataclasses.dataclass(frozen=True)
class Indices:
    """Indices into a codebook of at most 256 values, the most frequent of them first.

    An index is coded as whether it is 0, then bit by bit. contexts: 1 or 7; shift: how fast their
    weights are learned.
    """

    name: ClassVar[str] = "indices"
    codebook: bytes
    contexts: int
    shift: int

    def code(self, coder, values, columns):
        codebook = np.frombuffer(self.codebook, values.dtype)
        if len(codebook) == 1:
            return np.full(values.size, codebook[0])
        symbols = np.zeros(values.size, np.uint8) if coder.decoding else _places(codebook, values)
        bits = (len(codebook) - 2).bit_length()
        symbols = coder.symbols(symbols, columns, bits, self.contexts, self.shift)
        return codebook.take(symbols, mode="clip")

    def numbers(self):
        return [self.contexts, self.shift, self.codebook]

    @classmethod
    def read(cls, reader, dtype):
        contexts, shift = reader.number(ALL_SYMBOL_CONTEXTS), reader.number(30)
        return cls(reader.codebook(dtype), max(contexts, 1), shift)


@dataclasses.dataclass(frozen=True)
class Sparse:
    """Where the most frequent value is, as symbols 0 and 1, and the others as bytes."""

    name: ClassVar[str] = "sparse"
    codebook: bytes
    flat: int
    contexts: int

    def code(self, coder, values, columns):
        filling = np.frombuffer(self.codebook, values.dtype)[0]
        symbols = (values != filling).astype(np.uint8)
        others = coder.symbols(symbols, columns, 0, ALL_SYMBOL_CONTEXTS, 16) != 0
        dense = values[others] if not coder.decoding else np.zeros(others.sum(), values.dtype)
        result = np.full(values.size, filling)
        result[others] = Bytes(self.flat, self.contexts).code(coder, dense, 1)
        return result

    def numbers(self):
        return [self.flat, self.contexts, self.codebook]

    @classmethod
    def read(cls, reader, dtype):
        flat, contexts = reader.number(255), reader.number(ALL_BYTE_CONTEXTS)
        return cls(reader.codebook(dtype), flat, max(contexts, 1))


Coding = Bytes | Indices | Sparse
CODINGS = (Bytes, Indices, Sparse)


def candidates(values: np.ndarray) -> list[Coding]:
    """Returns the codings that may suit the values, with their parameters."""
    many = values.size > _MANY
    codebook, counts = _codebook(values)
    found: list[Coding] = []
    rare = 1 - counts[0] / values.size
    if len(codebook) <= MOST_INDEXED:
        table = codebook.tobytes()
        found.append(Indices(table, FEW_SYMBOL_CONTEXTS, 14))
        if not many or rare < 0.25:
            found += [Indices(table, ALL_SYMBOL_CONTEXTS, shift) for shift in (14, 16, 18)]
    elif rare < 0.8:
        others = values[values != codebook[0]]
        light = len(others) > _MANY
        contexts = FEW_BYTE_CONTEXTS if light else ALL_BYTE_CONTEXTS
        found.append(Sparse(codebook[:1].tobytes(), _flat(others), contexts))
    if not many or len(codebook) > MOST_INDEXED:
        flat = _flat(values)
        found += [
            Bytes(flat, contexts)
            for contexts in (FEW_BYTE_CONTEXTS, ALL_BYTE_CONTEXTS)
            if contexts == FEW_BYTE_CONTEXTS or not many
        ]
    everything = (1 << values.itemsize) - 1
    return [*found, Bytes(everything, FEW_BYTE_CONTEXTS)]


def entropy_bits(values: np.ndarray) -> float:
    """Returns the bits per value that an ideal coder of single values needs, without a table."""
    counts = np.unique(values, return_counts=True)[1]
    shares = counts / values.size
    return float(-(shares * np.log2(shares)).sum()) + 0.0


def _codebook(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distinct values and their counts: the most frequent, then the rest in order."""
    if values.itemsize == 1:
        every = np.bincount(values.view(np.uint8), minlength=256)
        counts = np.roll(every, 128)
        distinct = np.arange(-128, 128)[counts > 0].astype(np.int8)
        counts = counts[counts > 0]
    else:
        distinct, counts = np.unique(values, return_counts=True)
    first = int(counts.argmax())
    order = np.r_[first, np.delete(np.arange(len(distinct)), first)]
    return distinct[order], counts[order]


def _places(codebook: np.ndarray, values: np.ndarray) -> np.ndarray:
    order = np.argsort(codebook)
    return order[np.searchsorted(codebook[order], values)].astype(np.uint8)


def _flat(values: np.ndarray) -> int:
    """Returns the mask of the bytes within an element that no coder makes smaller."""
    planes = values.view(np.uint8).reshape(-1, values.itemsize)
    if len(planes) < 4096:
        return 0
    return sum(
        1 << place
        for place in range(values.itemsize)
        if entropy_bits(np.ascontiguousarray(planes[:, place])) > _LOOKS_RANDOM
    )


class Reader:
    """Reads numbers and codebooks from bytes that may hold anything."""

    def __init__(self, content: bytes):
        self._content, self._place = content, 0

    def number(self, most: int) -> int:
        """Returns the next integer in [0, most], stored in groups of 7 bits, the lowest first."""
        value = shift = 0
        while shift < 70:
            (byte,) = self.take(1)
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                if value > most:
                    break
                return value
        raise InputError("Packed content is corrupt: it holds a number that cannot be.")

    def codebook(self, dtype: np.dtype) -> bytes:
        """Returns the next 1 to 256 values."""
        first = self.take(dtype.itemsize)
        rest = np.frombuffer(self.take(self.number(MOST_INDEXED - 1) * dtype.itemsize), dtype)
        return first + np.cumsum(rest, dtype=dtype).tobytes()

    def take(self, size: int) -> bytes:
        """Returns the next `size` bytes."""
        if size > len(self._content) - self._place:
            raise InputError("Packed content is corrupt: it ends too early.")
        self._place += size
        return self._content[self._place - size : self._place]

    def rest(self) -> bytes:
        return self._content[self._place :]


def number(value: int) -> bytes:
    """Returns an integer as `Reader.number` reads it."""
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def written(coding: Coding, dtype: np.dtype) -> bytes:
    """Returns what the decoder must know of a coding: its number and its fields."""
    parts = [number(CODINGS.index(type(coding)))]
    for field in coding.numbers():
        if isinstance(field, int):
            parts.append(number(field))
            continue
        values = np.frombuffer(field, dtype)
        steps = np.diff(values[1:], prepend=np.zeros(1, dtype)) if len(values) > 1 else values[:0]
        parts += [values[:1].tobytes(), number(len(steps)), steps.astype(dtype).tobytes()]
    return b"".join(parts)
