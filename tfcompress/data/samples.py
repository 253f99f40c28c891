"""Samples as a user gives them -> one array for each of the model's inputs."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfcompress.errors import InputError

# Ranges settle long before; and a dataset may be endless.
MOST = 1000


def to_arrays(samples: Any, specs: Sequence[Any], names: Sequence[str]) -> list[np.ndarray]:
    """Returns an array (n, ...) for each input, in the order of the inputs, n at most 1,000.

    Of longer arrays 1,000 rows spread over all are taken: images often lie class by class. Of a
    dataset it is the first 1,000.

    Args:
        samples: an array, alone or with its labels, (x, y); for several inputs a list of arrays
            or a mapping from the inputs' names; or a `tf.data.Dataset`, batched or not, with or
            without labels.
        specs: for each input its `shape` (with the batch axis; None = any) and `dtype`.
        names: the inputs' names.

    Raises:
        InputError: for another number of inputs, another shape, no numbers, NaN or infinity.
    """
    if isinstance(samples, tuple) and len(names) == 1 and len(samples) == 2:
        samples = samples[0]  # (x, y), as `fit` takes them
    if hasattr(samples, "element_spec"):
        arrays = _from_dataset(samples, specs, names)
    else:
        try:
            arrays = [np.asarray(part) for part in _by_input(samples, names)]
        except ValueError:  # parts of several shapes: they are no array
            arrays = list(samples)
    if len(arrays) != len(specs):
        raise InputError(
            f"Samples must be one array for each of the model's {len(specs)} inputs "
            f"({', '.join(names)}). Received: {len(arrays)} arrays."
        )
    lengths = [len(array) for array in arrays if array.ndim]
    if len(set(lengths)) > 1:
        raise InputError(f"Samples must have as many rows for each input. Received: {lengths}")
    fewer = [spread(array, MOST) if array.ndim else array for array in arrays]
    return [_check(a, s, n) for a, s, n in zip(fewer, specs, names, strict=True)]


def spread(array: np.ndarray, most: int) -> np.ndarray:
    """Returns the array, or of a longer one `most` rows spread evenly over all."""
    if len(array) <= most:
        return array
    return array[np.linspace(0, len(array) - 1, most).astype(int)]


def _by_input(samples: Any, names: Sequence[str]) -> list[Any]:
    if isinstance(samples, Mapping):
        missing = [name for name in names if name not in samples]
        if missing:
            raise InputError(
                f"Samples must name each input. Missing: {', '.join(missing)}; "
                f"received: {', '.join(map(str, samples))}"
            )
        return [samples[name] for name in names]
    if isinstance(samples, list | tuple) and (
        len(names) > 1 or (len(samples) == 1 and np.ndim(samples[0]) > 1)
    ):
        return list(samples)
    return [samples]


def _from_dataset(dataset: Any, specs: Sequence[Any], names: Sequence[str]) -> list[np.ndarray]:
    parts: list[list[np.ndarray]] = [[] for _ in specs]
    rows = 0
    for element in dataset:
        inputs = _by_input(_without_labels(element, len(specs)), names)
        inputs = [np.asarray(tensor) for part in inputs for tensor in keras.tree.flatten(part)]
        if len(inputs) != len(specs):
            return inputs  # the caller says what is wrong
        if inputs[0].ndim < len(specs[0].shape):  # one sample, not a batch of them
            inputs = [array[np.newaxis] for array in inputs]
        for part, array in zip(parts, inputs, strict=True):
            part.append(array[: MOST - rows])
        rows += len(inputs[0])
        if rows >= MOST:
            break
    if not rows:
        raise InputError("Samples must not be empty. Received: a dataset without elements.")
    return [np.concatenate(part) for part in parts]


def _without_labels(element: Any, inputs: int) -> Any:
    """Returns x of x, (x, y) or (x, y, weight); with several inputs, x is a list or mapping."""
    if not isinstance(element, tuple):
        return element
    if inputs == 1 or len(keras.tree.flatten(element[0])) == inputs:
        return element[0]
    return element


def _check(array: np.ndarray, spec: Any, name: str) -> np.ndarray:
    if array.dtype.kind not in "fiub":
        raise InputError(f"Samples for input '{name}' must be numbers. Received: {array.dtype}")
    expected = tuple(spec.shape)[1:]
    fits = array.ndim == len(expected) + 1 and all(
        size is None or size == found for size, found in zip(expected, array.shape[1:], strict=True)
    )
    if not fits:
        shown = ", ".join(["n", *("any" if size is None else str(size) for size in expected)])
        raise InputError(
            f"Samples for input '{name}' must have the shape ({shown}). Received: {array.shape}"
        )
    if len(array) == 0:
        raise InputError(f"Samples for input '{name}' must not be empty.")
    dtype = np.dtype(keras.backend.standardize_dtype(spec.dtype))
    if not np.all(np.isfinite(array)):
        raise InputError(f"Samples for input '{name}' must be finite. Received: NaN or infinity.")
    if dtype.kind in "iu" and array.dtype.kind == "f" and np.any(array != np.round(array)):
        raise InputError(
            f"Samples for input '{name}' must be integers (a command keeps them so with "
            f"--standardize none). Received: {array.dtype}"
        )
    return array.astype(dtype)
