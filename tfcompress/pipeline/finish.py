"""The end of a run: files written and read back, measured against the baseline, checked, reported.

Here, and nowhere else, the test images are read.
"""

import contextlib
import dataclasses
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from tfcompress import measure, report, tflite, wrappers
from tfcompress.data import Data
from tfcompress.data.batches import evaluation_batches
from tfcompress.pipeline.checks import run_checks
from tfcompress.pipeline.fit import save
from tfcompress.pipeline.state import assign, values, variables
from tfcompress.recipe import Recipe, Search
from tfcompress.search import Allocation, mixed_precision
from tfcompress.weights import kernels

FILES = (
    "model.keras",
    "model.tflite",
    "baseline.tflite",
    "recipe.yaml",
    "report.json",
    "report.html",
    "manifest.json",
)


@dataclasses.dataclass(frozen=True)
class Baseline:
    """The model before compression: its structure, and its weights, which training changes."""

    model: keras.Model
    weights: list[np.ndarray]
    kernels: dict[str, np.ndarray]

    @staticmethod
    def of(model: keras.Model) -> "Baseline":
        return Baseline(model, values(variables(model)), kernel_values(model))

    @contextlib.contextmanager
    def restored(self) -> Iterator[keras.Model]:
        """Yields the model as it was; afterwards it has the weights again that it has now."""
        now = values(variables(self.model))
        assign(variables(self.model), self.weights)
        try:
            yield self.model
        finally:
            assign(variables(self.model), now)


def finish(
    resolved: Recipe,
    data: Data,
    model: keras.Model,
    baseline: Baseline,
    from_logits: bool,
    stages: list[dict[str, Any]],
    folder: pathlib.Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Writes the run's files, each beside its place first, and returns the content of report.json.

    What is reported is read back: weights from model.keras, types and zeros from model.tflite,
    accuracy from what the interpreter puts out.
    """
    say("export")
    beside = folder / "stages" / "files"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    samples = data.samples(resolved.export.samples, resolved.seed)
    save(model, beside / "model.keras", from_logits)
    model.load_weights(beside / "model.keras")
    export = resolved.export
    words = {"scheme": export.scheme, **export.words}
    found = None
    if export.search is not None:
        say("search: a scheme for each layer")
        found = searched(model, data, samples, export.search, export.words, from_logits)
        words["rules"] = found.rules
    after = _row(model, words, resolved, data, samples, beside / "model.tflite")
    with baseline.restored() as original:
        words = {"scheme": "float32"}
        before = _row(original, words, resolved, data, samples, beside / "baseline.tflite")
    latency = _latency(resolved, beside, say)
    for row, reading in zip((before, after), latency, strict=False):
        row["median_latency_ms"] = reading["median_ms"]
    audit = tflite.audit(beside / "model.tflite")
    record: dict[str, Any] = {
        "name": resolved.name,
        "model": resolved.model,
        "data": resolved.data.source,
        "seed": resolved.seed,
        "stages": stages,
        "before": before,
        "after": after,
        "compression": 4 * before["parameters"] / audit.deflated_bytes,
        "search": found.to_dict() if found else None,
        "audit": audit.to_dict(),
        "latency": latency,
        "comparison": dataclasses.asdict(tflite.compare(model, beside / "model.tflite", samples)),
    }
    record["checks"] = run_checks(resolved, record)
    record["passed"] = all(check["passed"] for check in record["checks"])
    (beside / "recipe.yaml").write_text(resolved.to_yaml())
    (beside / "report.json").write_text(json.dumps(record, indent=2))
    report.write_html(beside / "report.html", record, baseline.kernels, kernel_values(model))
    manifest = _manifest(resolved, data, beside)
    (beside / "manifest.json").write_text(json.dumps(manifest, indent=2))
    for name in FILES:
        (beside / name).replace(folder / name)
    beside.rmdir()
    return record


def searched(
    model: keras.Model,
    data: Data,
    samples: Any,
    search: Search,
    words: Mapping[str, Any],
    from_logits: bool,
) -> Allocation:
    """Returns what a recipe's search finds for a classifier, whose file has these words too."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
    last = ("rules", "search_ranges")  # for the file of the rules that are found
    given = dict(search) | {key: word for key, word in words.items() if key not in last}
    return mixed_precision(model, data, loss=loss, samples=samples, **given)


def _row(
    model: keras.Model,
    words: dict[str, Any],
    resolved: Recipe,
    data: Data,
    samples: np.ndarray,
    path: pathlib.Path,
) -> dict[str, Any]:
    """Converts the model into the file and returns its side of the before/after table."""
    keep_names = resolved.export.keep_names
    path.write_bytes(tflite.convert(model, samples=samples, keep_names=keep_names, **words))
    audit = tflite.audit(path)
    measures = measure.measure_model(model)
    return {
        "accuracy": file_accuracy(path, data, resolved.check.xnnpack),
        "keras_accuracy": accuracy(model, data, "test"),
        "parameters": measures.parameters - _range_parameters(model),
        "nonzeros": audit.nonzeros,
        "sparsity": audit.sparsity,
        "distinct_values": measures.distinct_values,
        "distinct_values_per_channel": max(w.distinct_per_channel for w in audit.weights),
        "size_bytes": audit.size_bytes,
        "deflated_bytes": audit.deflated_bytes,
        "macs": audit.macs,
        "median_latency_ms": None,
    }


def _range_parameters(model: keras.Model) -> int:
    """Returns how many numbers are ranges of fake quantization, which the file does not hold."""
    layers = model._flatten_layers()
    return sum(x.count_params() for x in layers if isinstance(x, wrappers.FakeQuantize))


def _latency(
    resolved: Recipe, beside: pathlib.Path, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Returns the times of baseline.tflite and model.tflite, taken in turn; [] if not wanted."""
    check = resolved.check
    if not check.runs:
        return []
    say(f"latency: {check.runs} runs")
    names = ("baseline.tflite", "model.tflite")
    readings = tflite.measure_latency(
        [beside / name for name in names],
        threads=check.threads,
        runs=check.runs,
        xnnpack=check.xnnpack,
    )
    return [r.to_dict() | {"path": name} for r, name in zip(readings, names, strict=True)]


def _manifest(resolved: Recipe, data: Data, beside: pathlib.Path) -> dict[str, Any]:
    model = resolved.model if isinstance(resolved.model, str) else ""
    inputs: dict[str, Any] = {"data": data.fingerprint.encode()}
    if model and pathlib.Path(model).exists():
        inputs["model"] = pathlib.Path(model)
    outputs = {name: beside / name for name in FILES if name != "manifest.json"}
    return report.manifest(resolved.to_dict(), inputs, outputs, resolved.seed)


def accuracy(model: keras.Model, data: Data, split: str) -> float:
    """Returns the share of the split's images whose class the Keras model tells right."""
    right = total = 0
    for x, y in evaluation_batches(data, split):
        outputs = keras.ops.convert_to_numpy(model(x, training=False))
        right += int((outputs.argmax(axis=-1) == y.numpy()).sum())
        total += len(y)
    return right / total


def file_accuracy(path: pathlib.Path, data: Data, xnnpack: bool = True) -> float:
    """Returns the same for a `.tflite` file, run on the test images."""
    right = 0
    for x, y in data.batches("test", 1024):
        right += int((tflite.run(path, x, xnnpack=xnnpack).argmax(axis=-1) == y).sum())
    return right / len(data.y_test)


def kernel_values(model: keras.Model) -> dict[str, np.ndarray]:
    return {kernel.path: kernel.value() for kernel in kernels(model)}
