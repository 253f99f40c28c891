"""Searches over compressions, whose candidates are real files, measured."""

from tfcompress.search.allocation import Allocation, Point
from tfcompress.search.mixed_precision import checked, mixed_precision

__all__ = ["Allocation", "Point", "checked", "mixed_precision"]
