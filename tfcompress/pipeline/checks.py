"""What a recipe demands of the files, held against what was read back from them."""

from collections.abc import Mapping
from typing import Any

from tfcompress.recipe import Recipe


def run_checks(resolved: Recipe, record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns {name, limit, value, passed, problem} for each check that the recipe makes.

    `full_integer` belongs to the schemes of integers alone; the others are keys of the recipe's
    `check`.
    `problem` is a sentence for a check that failed, else "".
    """
    found = []
    export = resolved.export
    full = export.scheme in ("int8", "int16x8", "int4")
    if full and export.activations in (None, "int8"):
        audit = record["audit"]
        problem = f"float operators in model.tflite: {', '.join(audit['float_operators'])}"
        if not audit["float_operators"]:
            problem = f"tensors in model.tflite: {audit['tensors']}"
        found.append(_entry("full_integer", True, audit["full_integer"], problem))
    for name, value in _values(record).items():
        limit = getattr(resolved.check, name)
        if limit is not None:
            kind = "at most" if name.startswith("max_") else "at least"
            passed = value <= limit if kind == "at most" else value >= limit
            problem = f"{name}: {value:.6g}, but must be {kind} {limit:g}"
            found.append(_entry(name, limit, value, problem, passed))
    return found


def _values(record: Mapping[str, Any]) -> dict[str, Any]:
    before, after = record["before"], record["after"]
    values = {
        "max_accuracy_drop": before["accuracy"] - after["accuracy"],
        "min_accuracy": after["accuracy"],
        "max_size_bytes": after["size_bytes"],
        "min_compression": record["compression"],
        "min_sparsity": after["sparsity"],
        "max_distinct_values": max(after["distinct_values"], after["distinct_values_per_channel"]),
    }
    if record["latency"]:
        values["max_latency_ms"] = after["median_latency_ms"]
        values["max_latency_ratio"] = after["median_latency_ms"] / before["median_latency_ms"]
    return values


def _entry(
    name: str, limit: Any, value: Any, problem: str, passed: bool | None = None
) -> dict[str, Any]:
    passed = value == limit if passed is None else passed
    return {
        "name": name,
        "limit": limit,
        "value": value,
        "passed": bool(passed),
        "problem": "" if passed else problem,
    }
