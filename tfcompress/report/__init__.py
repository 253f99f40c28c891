"""What a run shows: tables, plots, one HTML page, and the manifest to repeat it from."""

from tfcompress.report.clusterings import (
    ClusteringComparison,
    ClusteringResult,
    compare_clusterings,
)
from tfcompress.report.manifest import manifest, sha256
from tfcompress.report.page import render, write_html
from tfcompress.report.quantization import LayerError, QuantizationReport, quantization_report
from tfcompress.report.tables import print_table
from tfcompress.report.weights import KernelWeights, WeightsReport, weights_report

__all__ = [
    "ClusteringComparison",
    "ClusteringResult",
    "KernelWeights",
    "LayerError",
    "QuantizationReport",
    "WeightsReport",
    "compare_clusterings",
    "manifest",
    "print_table",
    "quantization_report",
    "render",
    "sha256",
    "weights_report",
    "write_html",
]
