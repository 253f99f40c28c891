"""`.tflite` files: made, read back, run, compared, timed."""

from tfcompress.tflite.audit import Audit, Weight, audit
from tfcompress.tflite.compare import Comparison, compare
from tfcompress.tflite.convert import SCHEMES, convert
from tfcompress.tflite.run import run, run_integers
from tfcompress.tflite.slim import slim

__all__ = [
    "SCHEMES",
    "Audit",
    "Comparison",
    "Weight",
    "audit",
    "compare",
    "convert",
    "run",
    "run_integers",
    "slim",
]
