"""`.tflite` files: made, read back, run, compared, timed."""

from tfcompress.tflite.audit import Audit, Weight, audit, stored_kernels
from tfcompress.tflite.codebook import CodebookFlatbuffer, codebook_flatbuffer
from tfcompress.tflite.compare import Comparison, compare
from tfcompress.tflite.convert import convert
from tfcompress.tflite.interpreter import run, run_integers
from tfcompress.tflite.latency import Latency, Operator, measure_latency
from tfcompress.tflite.request import SCHEMES, Request
from tfcompress.tflite.slim import slim
from tfcompress.tflite.sparse_inference import (
    SparseInference,
    SparseLayer,
    sparse_inference_report,
)

__all__ = [
    "SCHEMES",
    "Audit",
    "CodebookFlatbuffer",
    "Comparison",
    "Latency",
    "Operator",
    "Request",
    "SparseInference",
    "SparseLayer",
    "Weight",
    "audit",
    "codebook_flatbuffer",
    "compare",
    "convert",
    "measure_latency",
    "run",
    "run_integers",
    "slim",
    "sparse_inference_report",
    "stored_kernels",
]
