"""A run's record as one HTML file that needs nothing beside it."""

import base64
import json
import os
import pathlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import jinja2
import numpy as np

from tfcompress.files import written_whole
from tfcompress.report import plots, tables

Arrays = Mapping[str, np.ndarray]


def write_html(
    path: str | os.PathLike,
    record: Mapping[str, Any],
    weights_before: Arrays | None = None,
    weights_after: Arrays | None = None,
) -> None:
    """Writes `render(record, weights_before, weights_after)` to `path`, whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    content = render(record, weights_before, weights_after).encode()
    with written_whole(path) as file:
        file.write(content)


def render(
    record: Mapping[str, Any],
    weights_before: Arrays | None = None,
    weights_after: Arrays | None = None,
) -> str:
    """Returns a run's record as a self-contained HTML page; equal records give equal pages.

    Args:
        record: what the pipeline writes into `report.json`; what is missing is shown as "–".
        weights_before: the kernels before compression by path, arrays of any shape.
        weights_after: the same after it.

    Example:

    >>> "12,345" in render({"name": "digits", "after": {"size_bytes": 12345}})
    True
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    stages = record.get("stages") or []
    measures = next((s["measures"] for s in reversed(stages) if s.get("measures")), None)
    return environment.get_template("report.html").render(
        name=record.get("name") or "Compression",
        facts=[(key, tables.plain(record.get(key))) for key in ("model", "data", "seed")],
        passed=record.get("passed"),
        compression=tables.compression(record),
        comparison=tables.compare(record),
        time_note=tables.explain_time(record),
        stage_titles=tables.STAGE_TITLES,
        stages=tables.stages(record),
        arguments=[(s.get("name"), _pretty(s.get("arguments"))) for s in stages],
        empty_clusters=tables.empty_clusters(record),
        skipped=tables.skipped(record),
        checks=tables.checks(record),
        kernels=[_kernel_row(kernel) for kernel in (measures or {}).get("kernels") or []],
        audit=_audit(record.get("audit") or {}),
        tensors=[_tensor_row(tensor) for tensor in (record.get("audit") or {}).get("weights", [])],
        latency=[_latency(reading) for reading in record.get("latency") or []],
        closeness=record.get("comparison") or {},
        plain=tables.plain,
        training=_embed(plots.training(stages)),
        kernel_bytes=_embed(plots.kernel_bytes(measures)),
        file_bytes=_embed(plots.file_bytes(record.get("audit"))),
        weights=list(_weight_plots(weights_before or {}, weights_after or {})),
    )


def _weight_plots(before: Arrays, after: Arrays) -> Iterator[tuple[str, str]]:
    for path in dict.fromkeys([*before, *after]):
        arrays = (
            None if values.get(path) is None else np.asarray(values[path])
            for values in (before, after)
        )
        yield path, _embed(plots.weights(path, *arrays))


def _kernel_row(kernel: Mapping[str, Any]) -> list[str]:
    storage = kernel.get("storage") or {}
    forms = ("dense_bytes", "csr_bytes", "bitmask_bytes", "deflated_bytes", "entropy_bytes")
    return [
        str(kernel.get("path", tables.MISSING)),
        " x ".join(map(str, kernel.get("shape") or [])),
        tables.percent(kernel.get("sparsity")),
        tables.count(kernel.get("distinct_nonzero_values")),
        *(tables.count(storage.get(form)) for form in forms),
    ]


def _tensor_row(tensor: Mapping[str, Any]) -> list[str]:
    counts = ("size", "nonzeros", "distinct", "distinct_per_channel", "bytes")
    return [
        str(tensor.get("name", tables.MISSING)),
        " x ".join(map(str, tensor.get("shape") or [])),
        str(tensor.get("dtype", tables.MISSING)),
        *(tables.count(tensor.get(key)) for key in counts),
    ]


def _audit(audit: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns what the file holds, in words; operators and types are counted: "2 x CONV_2D"."""
    rows = []
    for key, label in _AUDIT_LABELS.items():
        value = audit.get(key)
        if isinstance(value, Mapping | list | tuple):
            counts = value if isinstance(value, Mapping) else Counter(value)
            text = ", ".join(f"{number} x {name}" for name, number in counts.items()) or "none"
        elif isinstance(value, bool):
            text = "yes" if value else "no"
        else:
            text = tables.plain(value)
        rows.append((label, text))
    return rows


_AUDIT_LABELS = {
    "full_integer": "full integer",
    "operators": "operators",
    "tensors": "tensors by type",
    "float_operators": "operators on floats",
    "delegated_operators": "run by XNNPACK",
    "macs": "multiply-accumulates",
    "size_bytes": "bytes",
    "deflated_bytes": "deflated bytes",
}


def _latency(reading: Mapping[str, Any]) -> dict[str, Any]:
    times = ("median_ms", "p10_ms", "p90_ms")
    return {
        "file": pathlib.PurePath(str(reading.get("path") or tables.MISSING)).name,
        "times": [tables.milliseconds(reading.get(key)) for key in times],
        "ratio": tables.plain(reading.get("ratio_to_first")),
        "spread": " to ".join(tables.plain(reading.get(f"ratio_{end}")) for end in ("p10", "p90")),
        "how": [tables.plain(reading.get(key)) for key in ("threads", "runs", "xnnpack")],
        "arena": tables.count(reading.get("arena_bytes")),
        "operators": _embed(plots.operator_times(reading)),
    }


def _pretty(arguments: Any) -> str:
    return json.dumps(arguments, indent=None, default=str) if arguments else "defaults"


def _embed(png: bytes | None) -> str:
    if png is None:
        return ""
    return "data:image/png;base64," + base64.b64encode(png).decode()
