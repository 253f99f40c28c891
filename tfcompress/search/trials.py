"""Mixed files of one model, each made once and measured on the same samples."""

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfcompress import tflite
from tfcompress.errors import require
from tfcompress.search.allocation import rules_for
from tfcompress.structured import evaluation
from tfcompress.tflite import interpreter
from tfcompress.tflite.compare import outputs
from tfcompress.weights import kernels

_BATCH = 64


@dataclasses.dataclass(frozen=True)
class Trial:
    """A file and what it did: its mean loss, and the share of right predictions, if known.

    shortfall: why the file is not what it was asked to be, "" if it is.
    """

    flatbuffer: bytes
    loss: float
    accuracy: float | None
    shortfall: str = ""

    @property
    def size_bytes(self) -> int:
        return len(self.flatbuffer)


class Trials:
    """Makes and measures files; `data` and `loss` as `mixed_precision` takes them."""

    def __init__(
        self,
        model: keras.Model,
        data: Any,
        loss: Any,
        calibration: Any,
        options: Mapping[str, Mapping[str, Any]],
        arguments: Mapping[str, Any],
        most: int,
    ):
        self.model, self.options, self._arguments = model, options, arguments
        batches = list(evaluation.batches(data, _BATCH, -(-most // _BATCH)))
        rows = [evaluation.inputs_in_order(model, x) for x, _ in batches]
        self.x = [
            np.concatenate(part).astype(np.float32)[:most] for part in zip(*rows, strict=True)
        ]
        self._calibration = self.x[:] if calibration is None else calibration
        if calibration is None:
            self._calibration = [array[:200] for array in self.x]
        labelled = batches[0][1] is not None
        self._y: Any = None
        if labelled:
            self._y = keras.tree.map_structure(
                lambda *parts: np.concatenate(parts)[:most], *[y for _, y in batches]
            )
        else:
            self._float = outputs(model, self.x)
        self._judge = evaluation.loss_of(model, loss) if labelled else None
        self._made: dict[tuple, Trial] = {}

    def __call__(self, schemes: Mapping[str, str]) -> Trial:
        """Returns the file in which each layer, by path, has its scheme."""
        key = tuple(schemes.values())
        if key not in self._made:
            rules = rules_for(schemes, self.options)
            with warnings.catch_warnings(record=True) as notes:
                warnings.simplefilter("ignore")
                warnings.filterwarnings("always", message="Model .* as mixed could not hold all")
                content = tflite.convert(
                    self.model, "mixed", self._calibration, rules=rules, **self._arguments
                )
            self._made[key] = self._measured(content, "; ".join(str(n.message) for n in notes))
        return self._made[key]

    def weights(self, path: str) -> int:
        """Returns how many weights the layer's kernels have."""
        return sum(math.prod(k.variable.shape) for k in kernels(self.model) if k.layer_path == path)

    def in_float(self) -> Trial:
        return self._measured(tflite.convert(self.model, "float32", self._calibration))

    def _measured(self, content: bytes, shortfall: str = "") -> Trial:
        found = tflite.run(content, self.x)
        found = found if isinstance(found, list) else [found]
        details = interpreter.start(content).get_output_details()
        found = [_floored(y, d) for y, d in zip(found, details, strict=True)]
        if self._judge is None:
            squares = sum(
                float(np.sum((a - b) ** 2)) for a, b in zip(found, self._float, strict=True)
            )
            total = sum(float(np.sum(a**2)) for a in self._float)
            return Trial(content, squares / max(total, 1e-30), None, shortfall)
        given = found[0] if len(found) == 1 else found
        loss = evaluation.finite(self._judge(self._y, given))
        return Trial(content, loss, _accuracy(self._y, found), shortfall)


def _floored(y: np.ndarray, detail: Mapping[str, Any]) -> np.ndarray:
    """Returns probabilities with half a step in the place of 0, whose logarithm is no loss."""
    scale, _ = detail["quantization"]
    if scale and y.size and y.min() >= 0 and y.max() <= 1:
        return np.maximum(y, np.float32(scale / 2))
    return y


def _accuracy(y: Any, found: Sequence[np.ndarray]) -> float | None:
    """Returns the share of right predictions of a classifier with one output, else None."""
    labels = np.asarray(y) if len(found) == 1 and not isinstance(y, dict | list) else None
    if labels is None or found[0].ndim != 2 or found[0].shape[-1] < 2:
        return None
    if labels.shape == found[0].shape:
        labels = labels.argmax(-1)
    if labels.size != len(found[0]) or not np.all(labels == np.round(labels)):
        return None
    return float(np.mean(found[0].argmax(-1) == labels.ravel()))


def require_accuracy(trial: Trial) -> float:
    """Returns the trial's accuracy; `InputError` where the data does not tell any."""
    rule = "needs a classifier with one output, and data with labels: (x, y)"
    require(trial.accuracy is not None, "max_accuracy_drop of mixed_precision", rule)
    return float(trial.accuracy or 0.0)
