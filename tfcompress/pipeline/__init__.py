"""Runs a recipe: trains and compresses stage by stage, resumes, exports, measures, reports."""

from tfcompress.pipeline.run import Result, compress

__all__ = ["Result", "compress"]
