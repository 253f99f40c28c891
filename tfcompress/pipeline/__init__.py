"""Runs a recipe: trains and compresses stage by stage, resumes, exports, measures, reports."""

from tfcompress.pipeline.run import Result, run_recipe

__all__ = ["Result", "run_recipe"]
