"""What a run shows: tables, plots, one HTML page, and the manifest to repeat it from."""

from tfcompress.report.manifest import manifest, sha256
from tfcompress.report.page import render, write_html
from tfcompress.report.tables import print_table

__all__ = ["manifest", "print_table", "render", "sha256", "write_html"]
