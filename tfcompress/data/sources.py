"""Where images come from: one word and, after a colon, where to look."""

import importlib
import os
import pathlib
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from tfcompress.data.images import read_folder
from tfcompress.errors import InputError, call, unknown

SPLIT_KEYS = ("x_train", "y_train", "x_test", "y_test")
KERAS_DATASETS = ("cifar10", "cifar100", "fashion_mnist", "mnist")


def read(source: str, size: int | tuple[int, int] | None = None) -> dict[str, Any]:
    """Returns x_train, y_train and, where the source has them, x_test, y_test and class_names."""
    word, _, where = str(source).partition(":")
    if word not in SOURCES:
        raise unknown("data source", word, SOURCES)
    if word != "digits" and not where:
        raise InputError(f"Data source '{word}' needs a place. Received: {source!r}")
    if size is not None and word != "images":
        raise InputError(f"`size` of data is for images:FOLDER only. Received: {source!r}")
    if word == "images":
        return read_folder(where, size)
    return SOURCES[word](where)


def read_digits(where: str) -> dict[str, Any]:
    """The 1,797 handwritten digits (8x8, grey levels 0 to 16) that scikit-learn carries."""
    if where:
        raise InputError(f"Data source 'digits' takes no place. Received: 'digits:{where}'")
    from sklearn.datasets import load_digits

    digits = load_digits()
    return {"x_train": digits.images.astype(np.float32), "y_train": digits.target}


def read_npz(file: str) -> dict[str, Any]:
    """An npz of arrays; pickled objects in it are never executed."""
    path = pathlib.Path(file)
    if not path.is_file():
        raise InputError(f"npz:{file} must be a file. Received: no such file")
    with path.open("rb") as opened:
        start = opened.read(6)
    if not start.startswith((b"PK", b"\x93NUMPY", b"\x80")):  # NumPy takes any other for a pickle
        raise InputError(f"npz:{file} is not a readable npz file (its first bytes are {start!r}).")
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise InputError(f"npz:{file} must be an .npz archive. Received: a single array")
        with archive:
            wanted = _wanted(archive.files)
            if not wanted:
                raise _wrong_keys(f"npz:{file}", archive.files)
            return _by_keys({key: archive[key] for key in wanted}, f"npz:{file}")
    except InputError:
        raise
    except ValueError as error:
        if "allow_pickle" in str(error) or "pickle" in str(error):
            raise InputError(f"npz:{file} holds pickled objects, which are never run.") from error
        raise InputError(f"npz:{file} is not a readable npz file ({error}).") from error
    except (OSError, zipfile.BadZipFile, EOFError, KeyError) as error:
        raise InputError(f"npz:{file} is not a readable npz file ({error}).") from error


def _wanted(keys: list[str]) -> list[str]:
    # Only what is used is read: other arrays of the file may be large.
    return [key for key in keys if key in {*SPLIT_KEYS, "x", "y"}]


def read_keras(name: str) -> dict[str, Any]:
    """One of `keras.datasets`, downloaded to Keras' cache on first use."""
    if name not in KERAS_DATASETS:
        raise unknown("data set of keras.datasets", name, KERAS_DATASETS)
    try:
        loaded = importlib.import_module(f"keras.datasets.{name}").load_data()
    except Exception as error:
        raise InputError(f"keras:{name} could not be downloaded ({_line(error)}).") from error
    return _by_position(loaded, f"keras:{name}")


def read_python(where: str) -> dict[str, Any]:
    """What MODULE:FUNCTION() returns; the module may lie in the working directory."""
    module_name, _, function_name = where.partition(":")
    owner = f"python:{where}"
    if not function_name:
        raise InputError(f"{owner} must be python:MODULE:FUNCTION.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(f"{owner} cannot be imported ({_line(error)}).") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        names = [name for name in vars(module) if callable(getattr(module, name))]
        raise unknown(f"function of {module_name}", function_name, names)
    loaded = call(function, owner)
    if isinstance(loaded, Mapping):
        return _by_keys(dict(loaded), owner)
    return _by_position(loaded, owner)


def _by_keys(arrays: dict[str, Any], owner: str) -> dict[str, Any]:
    if all(key in arrays for key in SPLIT_KEYS):
        return {key: arrays[key] for key in SPLIT_KEYS}
    if "x" in arrays and "y" in arrays:
        return {"x_train": arrays["x"], "y_train": arrays["y"]}
    raise _wrong_keys(owner, arrays)


def _wrong_keys(owner: str, keys: Iterable[str]) -> InputError:
    return InputError(
        f"{owner} must hold x_train, y_train, x_test, y_test or x, y. Received: {sorted(keys)}"
    )


def _by_position(loaded: Any, owner: str) -> dict[str, Any]:
    """Arrays from (x, y), ((x, y), (x, y)), or from one or two data sets of pairs."""
    if _is_dataset(loaded):
        loaded = _collected(loaded, owner)
    elif isinstance(loaded, tuple) and len(loaded) == 2 and all(map(_is_dataset, loaded)):
        loaded = tuple(_collected(dataset, owner) for dataset in loaded)
    if isinstance(loaded, tuple | list) and len(loaded) == 2:
        first, second = loaded
        if all(isinstance(part, tuple | list) and len(part) == 2 for part in loaded):
            return dict(zip(SPLIT_KEYS, (*first, *second), strict=True))
        return {"x_train": first, "y_train": second}
    raise InputError(
        f"{owner} must return ((x_train, y_train), (x_test, y_test)), (x, y), a mapping with "
        f"these keys, or one or two tf.data.Dataset. Received: {type(loaded).__name__}"
    )


def _is_dataset(value: Any) -> bool:
    return hasattr(value, "element_spec") and hasattr(value, "as_numpy_iterator")


def _collected(dataset: Any, owner: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads a data set of (image, label) pairs, batched or not, into arrays."""
    spec = dataset.element_spec
    if not (isinstance(spec, tuple) and len(spec) == 2):
        raise InputError(f"{owner} must yield pairs (images, labels). Received: {spec}")
    if int(dataset.cardinality()) == -1:
        raise InputError(f"{owner} must be finite. Received: an infinite tf.data.Dataset")
    # Labels of a batch are (n,) or (n, 1), a single one is a number.
    if spec[1].shape.rank == 0:
        dataset = dataset.batch(1024)
    pairs = list(dataset.as_numpy_iterator())
    if not pairs:
        raise InputError(f"{owner} must yield images. Received: none")
    return np.concatenate([x for x, _ in pairs]), np.concatenate([y for _, y in pairs])


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}".rstrip(
        ": "
    )


SOURCES: dict[str, Callable] = {
    "digits": read_digits,
    "npz": read_npz,
    "images": read_folder,
    "keras": read_keras,
    "python": read_python,
}
