"""What a packed model holds, array by array."""

import dataclasses
import math
from typing import Any

import numpy as np

from tfcompress.packing.codings import entropy_bits
from tfcompress.packing.container import Opened, opened
from tfcompress.packing.segments import Segment, find
from tfcompress.tflite import flatbuffer as fb


@dataclasses.dataclass(frozen=True)
class Part:
    """What became of one array: its bytes before and after, and how it was coded."""

    name: str
    coding: str
    elements: int
    bytes: int
    packed_bytes: int
    entropy_bytes: int
    distinct: int

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.packed_bytes / self.elements


@dataclasses.dataclass(frozen=True)
class PackReport:
    """What a packed model holds.

    bytes, packed_bytes: of the whole file. structure_bytes: of all that is not an array, with
        `packed_structure_bytes` after, header, checksums, codebooks and codings among them.
    parts: the arrays in the order of the file. Their `entropy_bytes` is what an ideal coder of
        single values takes, without a table: contexts may go below it.
    """

    bytes: int
    packed_bytes: int
    structure_bytes: int
    packed_structure_bytes: int
    parts: tuple[Part, ...]

    @property
    def ratio(self) -> float:
        return self.bytes / self.packed_bytes

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON takes them."""
        parts = [
            dataclasses.asdict(part) | {"bits_per_weight": part.bits_per_weight}
            for part in self.parts
        ]
        return dataclasses.asdict(self) | {"parts": parts, "ratio": self.ratio}

    def __str__(self) -> str:
        lines = [
            f"{self.bytes:,} bytes in {self.packed_bytes:,}: {self.ratio:.2f}x smaller",
            "",
            f"{'array':<40}{'coding':<9}{'elements':>12}{'distinct':>10}{'bytes':>13}"
            f"{'packed':>12}{'entropy':>12}{'bits each':>11}",
        ]
        lines += [
            f"{part.name[-39:]:<40}{part.coding:<9}{part.elements:>12,}{part.distinct:>10,}"
            f"{part.bytes:>13,}{part.packed_bytes:>12,}{part.entropy_bytes:>12,}"
            f"{part.bits_per_weight:>11.3f}"
            for part in self.parts
        ]
        lines.append(
            f"{'everything else':<71}{self.structure_bytes:>13,}{self.packed_structure_bytes:>12,}"
        )
        return "\n".join(lines)


def report(content: fb.Flatbuffer) -> PackReport:
    """Reads a packed model and tells, array by array, how it is coded and what it takes.

    Args:
        content: what `pack` returned, or the path of a file that holds it.

    Raises:
        InputError: the content is not packed, truncated or corrupt.

        print(tfc.packing.report(tfc.pack("model.tflite")))
    """
    found = opened(content)
    names = {segment.start: segment.name for segment in find(found.original)}
    parts = tuple(
        _part(found, place, names.get(segment.start, f"at {segment.start}"))
        for place, segment in enumerate(found.segments)
    )
    arrays, packed = (sum(getattr(p, name) for p in parts) for name in ("bytes", "packed_bytes"))
    return PackReport(
        bytes=len(found.original),
        packed_bytes=found.packed_bytes,
        structure_bytes=len(found.original) - arrays,
        packed_structure_bytes=found.packed_bytes - packed,
        parts=parts,
    )


def _part(found: Opened, place: int, name: str) -> Part:
    segment: Segment = found.segments[place]
    values = segment.values(found.original)
    return Part(
        name=name,
        coding=found.codings[place],
        elements=segment.elements,
        bytes=segment.length,
        packed_bytes=found.packed[place],
        entropy_bytes=math.ceil(entropy_bits(values) * values.size / 8),
        distinct=len(np.unique(values)),
    )
