"""Models packed into as few bytes as possible, and given back bit for bit.

A packed model is

    magic, version              4 bytes
    CRC-32 of all that follows  4
    kind of file                1: which typical file its structure is likened to
    CRC-32 of the original      4
    lengths                     of the original, of the head and of the structure
    code                        one arithmetic code: head, structure, then the arrays

The head lists the arrays: where they lie, what their elements are, how they are coded, and their
codebooks. The structure is the original without its arrays.
"""

import dataclasses
import os
import pathlib
import tempfile
import zlib

import keras
import numpy as np

from tfcompress.errors import InputError, require
from tfcompress.packing import codings, prior
from tfcompress.packing.coder import ALL_BYTE_CONTEXTS, FEW_BYTE_CONTEXTS, Decoder, Encoder
from tfcompress.packing.codings import Coding, Reader, number, written
from tfcompress.packing.segments import ITEMS, Segment, find
from tfcompress.tflite import flatbuffer as fb

MAGIC = b"TFC\x01"  # the last byte is the version of the format
_PRODUCT = len(codings.CODINGS)  # a segment that is a multiple of another
_CHECKSUM = slice(4, 8)
# No more bytes than this plus so many per packed byte: constant arrays take no code, and a forged
# length must not fill the memory.
_MOST_BYTES, _MOST_RATIO = 1 << 28, 1 << 16
_TRIAL = 1 << 18  # elements on which codings of larger arrays compete
_LIGHT = 1 << 22  # bytes of structure beyond which few contexts must do
_OWNER = "Packed content"


def pack(model: keras.Model | fb.Flatbuffer) -> bytes:
    """Returns a model in as few bytes as possible; `unpack` gives the file back bit for bit.

    Every array of the file is coded in the way that makes it smallest: as indices into its
    codebook, as places and values of what is not zero, or byte by byte, predicted from what is
    near it in row and column; everything else by a model that knows what such files look like.
    The content is unpacked and compared before it is returned. Takes about a second per million
    weights that are pruned or clustered, and memory of some copies of the file.

    Args:
        model: a Keras model (which is saved as `.keras`), the path of a `.tflite`, `.keras` or
            `.h5` file, or such a file's content.

    Raises:
        InputError: the file is of another kind, truncated or corrupt.

        content = tfc.pack("model.tflite")
        print(tfc.packing.report(content))
        assert tfc.unpack(content) == open("model.tflite", "rb").read()
    """
    content = _content(model)
    segments = find(content)
    chosen = [_choose(content, segment) for segment in segments]
    head, structure = _head(segments, chosen), _without(content, segments)
    kind = prior.kind(content)
    encoder = Encoder()
    try:
        _code_structure(encoder, np.frombuffer(head + structure, np.uint8), kind)
        for segment, coding in zip(segments, chosen, strict=True):
            if coding is not None:
                coding.code(encoder, segment.values(content), segment.columns)
        code = encoder.content()
    except OverflowError:
        raise InputError("pack finds nothing in the file that it could make smaller.") from None
    lengths = number(len(content)) + number(len(head)) + number(len(structure))
    body = bytes([kind]) + zlib.crc32(content).to_bytes(4, "big") + lengths + code
    packed = MAGIC + zlib.crc32(body).to_bytes(4, "big") + body
    if unpack(packed) != content:
        raise RuntimeError("The packed model does not unpack: a defect of pack().")
    return packed


def unpack(content: fb.Flatbuffer) -> bytes:
    """Returns the file that `pack` was given, bit for bit.

    Args:
        content: what `pack` returned, or the path of a file that holds it.

    Raises:
        InputError: the content is of another kind, of a later version, truncated or corrupt.

        open("model.tflite", "wb").write(tfc.unpack("model.tflite.packed"))
    """
    return opened(content).original


def skeleton(content: bytes) -> bytes:
    """Returns what `pack` stores of a file besides the arrays' elements, before it is coded."""
    segments = find(content)
    chosen = [_choose(content, segment) for segment in segments]
    return _head(segments, chosen) + _without(content, segments)


@dataclasses.dataclass(frozen=True)
class Opened:
    """A packed model read: the original, its arrays, the name of each coding, bytes of each."""

    original: bytes
    packed_bytes: int
    segments: list[Segment]
    codings: list[str]
    packed: list[int]


def opened(content: fb.Flatbuffer) -> Opened:
    """Reads a packed model; see `unpack`."""
    content = _read(content)
    require(content[:3] == MAGIC[:3], _OWNER, "must come from pack()", bytes=len(content))
    _sound(len(content) >= len(MAGIC), f"it has {len(content)} bytes")
    require(content[:4] == MAGIC, _OWNER, "is of another version of the format", found=content[3:4])
    body = content[_CHECKSUM.stop :]
    _sound(zlib.crc32(body).to_bytes(4, "big") == content[_CHECKSUM], "its checksum differs")
    reader = Reader(body)
    kind, checksum = reader.number(prior.KINDS - 1), reader.take(4)
    size = reader.number(_MOST_BYTES + _MOST_RATIO * len(content))
    head_size, structure_size = reader.number(size), reader.number(size)
    decoder = Decoder(reader.rest())
    decoder.expect(8 * (head_size + structure_size))
    room = np.zeros(head_size + structure_size, np.uint8)
    begin = _code_structure(decoder, room, kind).tobytes()
    segments, chosen, names = _read_head(begin[:head_size])
    arrays = sum(segment.length for segment in segments)
    fits = not segments or segments[-1].start + segments[-1].length <= size
    _sound(fits and arrays + structure_size == size, "its lengths do not add up")
    original = np.zeros(size, np.uint8)
    packed = []
    for segment, coding in zip(segments, chosen, strict=True):
        before = decoder.position
        if coding is not None:
            empty = np.zeros(segment.elements, ITEMS[segment.item])
            segment.put(original, coding.code(decoder, empty, segment.columns))
        packed.append(decoder.position - before)
    _put_products(original, segments)
    _put_structure(original, segments, begin[head_size:])
    restored = original.tobytes()
    _sound(zlib.crc32(restored).to_bytes(4, "big") == checksum, "it decodes to something else")
    return Opened(restored, len(content), segments, names, packed)


def _content(model: keras.Model | fb.Flatbuffer) -> bytes:
    if isinstance(model, keras.Model):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "model.keras"
            model.save(path)
            return path.read_bytes()
    require(
        isinstance(model, bytes | bytearray | str | os.PathLike),
        "Model for pack",
        "must be a Keras model, a path or a file's content",
        type=type(model).__name__,
    )
    return _read(model)


def _read(content: fb.Flatbuffer) -> bytes:
    if isinstance(content, bytes | bytearray):
        return bytes(content)
    given = isinstance(content, str | os.PathLike)
    require(given, _OWNER, "must be a path or a file's content", type=type(content).__name__)
    try:
        return pathlib.Path(content).read_bytes()
    except OSError as error:
        raise InputError(f"File {content} cannot be read: {error.strerror}.") from None


def _sound(condition: object, reason: str) -> None:
    if not condition:
        raise InputError(f"{_OWNER} is truncated or corrupt: {reason}.")


def _choose(content: bytes, segment: Segment) -> Coding | None:
    """Returns the coding in which the array is smallest; None if another array tells it."""
    if segment.base >= 0:
        return None
    values = segment.values(content)
    sample = values[: _TRIAL // segment.columns * segment.columns or _TRIAL]
    sizes = {}
    for coding in codings.candidates(values):
        trial = Encoder()
        try:
            coding.code(trial, sample, segment.columns)
            code = len(trial.content())
        except OverflowError:
            continue
        told = len(written(coding, values.dtype))
        sizes[coding] = code * values.size / sample.size + told
    return min(sizes, key=lambda coding: sizes[coding])


def _code_structure(coder: Encoder | Decoder, data: np.ndarray, kind: int) -> np.ndarray:
    contexts = ALL_BYTE_CONTEXTS if data.size <= _LIGHT else FEW_BYTE_CONTEXTS
    return coder.bytes(data, stride=4, contexts=contexts, prior=prior.typical(kind))


def _head(segments: list[Segment], chosen: list[Coding | None]) -> bytes:
    parts = [number(len(segments))]
    end = 0
    places = {segment.start: place for place, segment in enumerate(segments)}
    for segment, coding in zip(segments, chosen, strict=True):
        for value in (segment.start - end, segment.item, segment.length, segment.columns):
            parts.append(number(value))
        end = segment.start + segment.length
        if coding is None:
            factor = np.float32(segment.factor).tobytes()
            parts += [number(_PRODUCT), number(places[segment.base]), factor]
        else:
            parts.append(written(coding, np.dtype(ITEMS[segment.item])))
    return b"".join(parts)


def _read_head(head: bytes) -> tuple[list[Segment], list[Coding | None], list[str]]:
    reader = Reader(head)
    segments: list[Segment] = []
    chosen: list[Coding | None] = []
    bases: list[int] = []
    end = 0
    for _ in range(reader.number(len(head))):
        start = end + reader.number(1 << 48)
        item = reader.number(max(ITEMS))
        _sound(item in ITEMS, "it has elements of an unknown size")
        length = reader.number(1 << 48)
        columns = max(reader.number(2 * length), 1)
        which = reader.number(_PRODUCT)
        base, factor = -1, 0.0
        if which == _PRODUCT:
            base = reader.number(len(head))
            factor = float(np.frombuffer(reader.take(4), np.float32)[0])
            chosen.append(None)
        else:
            chosen.append(codings.CODINGS[which].read(reader, np.dtype(ITEMS[item])))
        _sound(length % max(item, 1) == 0, "an array ends within an element")
        segments.append(Segment(start, length, item, columns, factor=factor))
        bases.append(base)
        end = start + length
    for place, base in enumerate(bases):
        if base >= 0:
            fits = base < len(segments) and bases[base] < 0
            _sound(fits and segments[base].length == segments[place].length, "a base is missing")
            segments[place] = dataclasses.replace(segments[place], base=segments[base].start)
    names = ["product" if coding is None else coding.name for coding in chosen]
    return segments, chosen, names


def _put_products(original: np.ndarray, segments: list[Segment]) -> None:
    for segment in segments:
        if segment.base >= 0:
            base = original[segment.base : segment.base + segment.length].view(np.float32)
            with np.errstate(all="ignore"):
                product = np.float32(segment.factor) * base
            original[segment.start : segment.start + segment.length] = product.view(np.uint8)


def _without(content: bytes, segments: list[Segment]) -> bytes:
    """Returns the content without its arrays."""
    parts, end = [], 0
    for segment in segments:
        parts.append(content[end : segment.start])
        end = segment.start + segment.length
    return b"".join([*parts, content[end:]])


def _put_structure(original: np.ndarray, segments: list[Segment], structure: bytes) -> None:
    data = np.frombuffer(structure, np.uint8)
    end = place = 0
    for start, length in [*((s.start, s.length) for s in segments), (len(original), 0)]:
        original[end:start] = data[place : place + start - end]
        place, end = place + start - end, start + length
