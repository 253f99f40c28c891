"""Models packed for storage and transfer, given back bit for bit."""

from tfcompress.packing.container import pack, unpack
from tfcompress.packing.report import PackReport, Part, report

__all__ = ["PackReport", "Part", "pack", "report", "unpack"]
