"""How far a `.tflite` file is from the Keras model that it was made of."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from tfcompress.tflite import flatbuffer as fb
from tfcompress.tflite import interpreter


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Outputs of the file against the reference, over all samples.

    max_abs_error: the largest difference of any output value.
    agreement: share in [0, 1] of predictions that are the same: the arg max over the last axis;
        for outputs of one value, a difference of at most 1/20 of the reference's range.
    relative_error: root of the mean square difference over that of the reference.
    """

    max_abs_error: float
    agreement: float
    relative_error: float


def compare(
    reference: Callable[..., Any], flatbuffer: fb.Flatbuffer, samples: interpreter.Arrays
) -> Comparison:
    """Compares a Keras model with a file on the same samples, on the default interpreter.

    Args:
        reference: the Keras model.
        flatbuffer: the file's content or its path.
        samples: (n, ...), or a list of such arrays in the order of the model's inputs.
    """
    inputs = [samples] if isinstance(samples, np.ndarray) else list(samples)
    expected = outputs(reference, inputs)
    found = interpreter.run(flatbuffer, inputs)
    found = found if isinstance(found, list) else [found]
    pairs = [(e, f.astype(np.float32)) for e, f in zip(expected, found, strict=True)]
    squares = sum(float(np.sum((e - f) ** 2, dtype=np.float64)) for e, f in pairs)
    reference_squares = sum(float(np.sum(e**2, dtype=np.float64)) for e, _ in pairs)
    return Comparison(
        max_abs_error=max(float(np.max(np.abs(e - f))) for e, f in pairs),
        agreement=float(np.mean([np.mean(_agree(e, f)) for e, f in pairs])),
        relative_error=(squares / max(reference_squares, 1e-30)) ** 0.5,
    )


def outputs(model: Callable[..., Any], inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns the model's outputs (n, ...) as float32 arrays, in the order of its outputs."""
    parts = []
    for start in range(0, len(inputs[0]), 64):
        batch = [array[start : start + 64] for array in inputs]
        result = model(arrange(model, batch), training=False)
        parts.append([keras.ops.convert_to_numpy(y) for y in keras.tree.flatten(result)])
    return [np.concatenate(y).astype(np.float32) for y in zip(*parts, strict=True)]


def arrange(model: Any, inputs: Sequence[Any]) -> Any:
    """Returns the flat `inputs` in the structure (one tensor, list, dict) that `model` takes."""
    if hasattr(model, "_inputs_struct"):
        return keras.tree.pack_sequence_as(model._inputs_struct, list(inputs))
    return inputs[0] if len(inputs) == 1 else list(inputs)


def _agree(expected: np.ndarray, found: np.ndarray) -> np.ndarray:
    if expected.ndim > 1 and expected.shape[-1] > 1:
        return np.argmax(expected, axis=-1) == np.argmax(found, axis=-1)
    return np.abs(expected - found) <= 0.05 * np.ptp(expected) + 1e-6
