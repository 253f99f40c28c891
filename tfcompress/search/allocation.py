"""What a search for mixed precision found: a scheme for each layer, and the way there."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from tfcompress.report import plots

_INTEGERS = ("int4", "int8", "int16x8")


@dataclasses.dataclass(frozen=True)
class Point:
    """One allocation that was made a file and measured.

    schemes: by path of the layer. predicted_loss: the sum of what the layers do alone; loss: what
    the file did; accuracy: share in [0, 1] of right predictions, None where there are no labels to
    compare with. latency_ms: None unless a limit asked for it.
    """

    schemes: dict[str, str]
    size_bytes: int
    predicted_loss: float
    loss: float
    accuracy: float | None = None
    latency_ms: float | None = None


@dataclasses.dataclass(frozen=True)
class Allocation:
    """A scheme for each layer under a limit; see `mixed_precision`.

    chosen: the point that keeps the limit; flatbuffer: its file. rules: for `convert(model,
    scheme="mixed", rules=...)`, from which the same file comes. front: measured points from the
    smallest file to the largest. reference: the float32 file as a point.
    losses: by path of the layer and scheme, what the loss becomes when this layer alone has the
    scheme and all others have the first one, `schemes[0]`. size_bytes: the same of the file.
    excluded: by path and scheme, why a layer cannot have it. `str()` is a table, `to_dict()` plain
    values, `plot()` a figure.
    """

    chosen: Point
    flatbuffer: bytes = dataclasses.field(repr=False)
    rules: list[dict[str, Any]]
    front: tuple[Point, ...]
    reference: Point
    schemes: tuple[str, ...]
    losses: dict[str, dict[str, float]]
    size_bytes: dict[str, dict[str, int]]
    excluded: dict[str, dict[str, str]]

    def to_dict(self) -> dict[str, Any]:
        """Returns everything but the file as numbers, strings, lists and dicts, fit for JSON."""
        names = [field.name for field in dataclasses.fields(self) if field.name != "flatbuffer"]
        found = {name: getattr(self, name) for name in names}
        found |= {name: dataclasses.asdict(found[name]) for name in ("chosen", "reference")}
        found["front"] = [dataclasses.asdict(point) for point in self.front]
        return found | {"schemes": list(self.schemes)}

    def __str__(self) -> str:
        wide = max(len("layer"), *map(len, self.losses))
        heads = "".join(f"{scheme:>20}" for scheme in self.schemes)
        lines = [
            "loss and bytes of the file with one layer in another scheme "
            f"(all others {self.schemes[0]}; float32: {self.reference.loss:.4f}, "
            f"{self.reference.size_bytes:,})",
            f"{'layer':{wide}}  chosen  {heads}",
        ]
        for path, row in self.losses.items():
            cells = [
                f"{row[s]:.4f} {self.size_bytes[path][s]:>11,}" if s in row else "cannot be"
                for s in self.schemes
            ]
            cells_text = "".join(f"{cell:>20}" for cell in cells)
            lines.append(f"{path:{wide}}  {self.chosen.schemes[path]:<8}{cells_text}")
        for path, reasons in self.excluded.items():
            lines += [f"{path} cannot be {scheme}: {why}" for scheme, why in reasons.items()]
        timed = any(point.latency_ms is not None for point in self.front)
        lines += ["", f"{'bytes':>10}{'predicted':>11}{'loss':>9}{'accuracy':>10}"]
        lines[-1] += f"{'ms':>9}" if timed else ""
        for point in self.front:
            accuracy = "" if point.accuracy is None else f"{point.accuracy:.2%}"
            milliseconds = "" if point.latency_ms is None else f"{point.latency_ms:.3f}"
            mark = f"{milliseconds:>9}" if timed else ""
            mark += "  <- chosen" if point == self.chosen else ""
            lines.append(
                f"{point.size_bytes:>10,}{point.predicted_loss:>11.4f}{point.loss:>9.4f}"
                f"{accuracy:>10}{mark}"
            )
        return "\n".join(lines)

    def plot(self) -> Figure:
        """Returns a figure: the front's loss over its files' bytes, predicted and measured."""
        figure, axes = plots.new_figure(7.0, 4.2)
        x = [point.size_bytes for point in self.front]
        predicted = [point.predicted_loss for point in self.front]
        axes.plot(x, predicted, ":", color=plots.BEFORE, marker=".", label="sum of single layers")
        axes.plot(x, [p.loss for p in self.front], color=plots.AFTER, marker="o", label="measured")
        axes.plot(self.chosen.size_bytes, self.chosen.loss, "*", color=plots.ACCENT, markersize=12)
        axes.axhline(self.reference.loss, color="black", linewidth=0.8, label="float32")
        axes.set_xlabel("bytes of the file (star: chosen)")
        axes.set_ylabel("loss")
        plots.legend(figure, axes)
        return figure


def rules_for(
    schemes: Mapping[str, str], options: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Returns rules for `convert` that give each layer its scheme, with the scheme's options.

    What is no layer with a kernel is int8 where all layers are integers, float32 otherwise.

    >>> rules_for({"a": "int8", "b/c": "int4"}, {"int4": {"rounding": "adaround"}})[2]
    {'layers': '(b/c)', 'scheme': 'int4', 'rounding': 'adaround'}
    """
    rest = "int8" if all(scheme in _INTEGERS for scheme in schemes.values()) else "float32"
    if rest == "int8" and "int16x8" in schemes.values():
        rest = "int16x8"
    rules: list[dict[str, Any]] = [{"layers": ".*", "scheme": rest}]
    for scheme in dict.fromkeys(schemes.values()):
        paths = [re.escape(path) for path, own in schemes.items() if own == scheme]
        rule = {"layers": f"({'|'.join(paths)})", "scheme": scheme}
        rules.append(rule | dict(options.get(scheme, {})))
    return rules


def same_schemes(points: Sequence[Point]) -> list[Point]:
    """Returns the points in the order of their bytes, each allocation once."""
    seen: dict[tuple, Point] = {}
    for point in points:
        seen.setdefault(tuple(point.schemes.values()), point)
    return sorted(seen.values(), key=lambda point: point.size_bytes)
