"""A run's record as rows of text, for the terminal and for the page alike.

A record is what the pipeline writes into `report.json`. A number that was not measured is None
or missing there, and shown as "–".
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

import rich.box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

MISSING = "–"
STAGE_TITLES = (
    "stage",
    "epochs",
    "accuracy",
    "non-zeros",
    "sparsity",
    "distinct",
    "deflated",
    "entropy",
    "time",
)


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of the before/after table, as it is shown."""

    label: str
    before: str
    after: str
    change: str


@dataclasses.dataclass(frozen=True)
class StageLine:
    """One line of the stage-by-stage table, as it is shown."""

    name: str
    epochs: str
    accuracy: str
    nonzeros: str
    sparsity: str
    distinct_values: str
    deflated: str
    entropy: str
    seconds: str


def print_table(record: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints a run's result: before and after, stage by stage, skipped kernels, checks.

    Args:
        record: what the pipeline writes into `report.json`.
        console: a `rich.console.Console`; by default one that writes to stdout.

    Example:

    >>> record = {"before": {"size_bytes": 4000}, "after": {"size_bytes": 1000}}
    >>> print_table(record, Console(quiet=True))
    """
    parts: list[Any] = [_comparison(record)]
    if record.get("compression") is not None:
        parts.append(Text(f"Compression: {compression(record)}"))
    if record.get("stages"):
        parts.append(_stages(record))
    parts += [Text(f"Skipped {path}: {reason}") for _, path, reason in skipped(record)]
    parts += [Text(f"{stage}: {note}") for stage, note in empty_clusters(record)]
    parts += [
        Text(f"{check['verdict']}: {check['text']}", style="green" if check["passed"] else "red")
        for check in checks(record)
    ]
    (console or Console()).print(Group(*parts))


def compare(record: Mapping[str, Any]) -> list[Line]:
    """Returns the before/after table: a line for each measure."""
    before, after = record.get("before") or {}, record.get("after") or {}
    return [
        Line(label, form(before.get(key)), form(after.get(key)), change(before, after, key))
        for label, key, form, change in _MEASURES
    ]


def stages(record: Mapping[str, Any]) -> list[StageLine]:
    """Returns the stage-by-stage table; accuracies are those on the validation images."""
    return [_stage_line(stage) for stage in record.get("stages") or []]


def skipped(record: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Returns (stage, kernel path, reason) for all that a stage left out."""
    return [
        (str(stage.get("name", MISSING)), path, str(reason))
        for stage in record.get("stages") or []
        for path, reason in (stage.get("skipped") or {}).items()
    ]


def empty_clusters(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns (stage, sentence) for each stage that ended with clusters that no weight was in."""
    ends = [
        (str(stage.get("name", MISSING)), counts[-1])
        for stage in record.get("stages") or []
        if (counts := (stage.get("history") or {}).get("empty_clusters"))
    ]
    return [
        (stage, f"{count(number)} cluster{'s' * (number != 1)} kept without a weight")
        for stage, number in ends
        if number
    ]


def checks(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns each check with `passed`, a `verdict` and a `text` that names value and limit."""
    return [
        {
            "passed": bool(check.get("passed")),
            "verdict": "passed" if check.get("passed") else "FAILED",
            "text": f"{check.get('name', MISSING)}: {plain(check.get('value'))} "
            f"(limit {plain(check.get('limit'))})",
        }
        for check in record.get("checks") or []
    ]


def compression(record: Mapping[str, Any]) -> str:
    """Returns the compression, and what is divided by what."""
    ratio = record.get("compression")
    if not _is_number(ratio):
        return MISSING
    return f"{ratio:.1f}x (4 bytes per parameter of the baseline / deflated bytes of model.tflite)"


def explain_time(record: Mapping[str, Any]) -> str:
    """Returns one sentence on where the saved time comes from, "" if that is not known."""
    before, after = record.get("before") or {}, record.get("after") or {}
    if not (_is_number(before.get("macs")) and _is_number(after.get("macs"))):
        return ""
    if before["macs"] == after["macs"]:
        return (
            "Both files do the same number of multiplications: zeros and shared values save "
            "bytes, and time is saved by the integer arithmetic alone."
        )
    return (
        "The number of multiplications changed: time is saved by what was removed and by the "
        "integer arithmetic; zeros and shared values save bytes only."
    )


def count(value: Any) -> str:
    return f"{value:,.0f}" if _is_number(value) else MISSING


def percent(value: Any) -> str:
    return f"{100 * value:.2f} %" if _is_number(value) else MISSING


def milliseconds(value: Any) -> str:
    return f"{value:.4g} ms" if _is_number(value) else MISSING


def seconds(value: Any) -> str:
    return f"{value:.1f} s" if _is_number(value) else MISSING


def plain(value: Any) -> str:
    """Returns any value of the record as text: numbers short, None as missing."""
    if value is None:
        return MISSING
    if isinstance(value, bool) or not _is_number(value):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _ratio(before: Mapping[str, Any], after: Mapping[str, Any], key: str) -> str:
    old, new = before.get(key), after.get(key)
    if not (_is_number(old) and _is_number(new) and old > 0 and new > 0):
        return MISSING
    if old == new:
        return "same"
    return f"{old / new:.2f}x less" if old > new else f"{new / old:.2f}x more"


def _points(before: Mapping[str, Any], after: Mapping[str, Any], key: str) -> str:
    old, new = before.get(key), after.get(key)
    if not (_is_number(old) and _is_number(new)):
        return MISSING
    return f"{100 * (new - old):+.2f} points"


Change = Callable[[Mapping[str, Any], Mapping[str, Any], str], str]

_MEASURES: list[tuple[str, str, Callable[[Any], str], Change]] = [
    ("accuracy of the .tflite", "accuracy", percent, _points),
    ("accuracy of the Keras model", "keras_accuracy", percent, _points),
    ("parameters", "parameters", count, _ratio),
    ("non-zero weights", "nonzeros", count, _ratio),
    ("sparsity", "sparsity", percent, _points),
    ("distinct values per kernel", "distinct_values", count, _ratio),
    ("distinct values per channel", "distinct_values_per_channel", count, _ratio),
    ("bytes", "size_bytes", count, _ratio),
    ("deflated bytes", "deflated_bytes", count, _ratio),
    ("MACs", "macs", count, _ratio),
    ("median latency", "median_latency_ms", milliseconds, _ratio),
]


def _stage_line(stage: Mapping[str, Any]) -> StageLine:
    measures = stage.get("measures") or {}
    storage = measures.get("storage") or {}
    return StageLine(
        name=str(stage.get("name", MISSING)),
        epochs=count(stage.get("epochs")),
        accuracy=percent(stage.get("accuracy")),
        nonzeros=count(measures.get("nonzeros")),
        sparsity=percent(measures.get("sparsity")),
        distinct_values=count(measures.get("distinct_values")),
        deflated=count(storage.get("deflated_bytes")),
        entropy=count(storage.get("entropy_bytes")),
        seconds=seconds(stage.get("seconds")),
    )


def _comparison(record: Mapping[str, Any]) -> Table:
    table = Table(title=Text(str(record.get("name") or "Result")), box=rich.box.SIMPLE_HEAD)
    table.add_column("measure")
    for title in ("before", "after", "change"):
        table.add_column(title, justify="right")
    for line in compare(record):
        table.add_row(*dataclasses.astuple(line))
    return table


def _stages(record: Mapping[str, Any]) -> Table:
    """The stages, without the entropy so that they fit into 80 columns."""
    shown = [n for n, field in enumerate(dataclasses.fields(StageLine)) if field.name != "entropy"]
    title = "Stages (accuracy on the validation images)"
    table = Table(title=title, box=rich.box.SIMPLE_HEAD, padding=0)
    for n in shown:
        table.add_column(STAGE_TITLES[n], justify="right" if n else "left", no_wrap=True)
    for line in stages(record):
        cells = dataclasses.astuple(line)
        table.add_row(*(Text(cells[n]) for n in shown))
    return table


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
