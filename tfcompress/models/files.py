"""Models from files, without executing code that they may carry."""

import os
import pathlib
import pickle
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from typing import Any

import h5py
import keras

from tfcompress.errors import InputError
from tfcompress.models.legacy_h5 import modernised
from tfcompress.models.savedmodel import from_saved_model

_LAMBDA = re.compile(r"function_type\W+lambda|__lambda__")


def from_file(path: str | os.PathLike, unsafe: bool = False) -> keras.Model:
    """Returns the model in a `.keras` or `.h5` file or a SavedModel folder, not compiled.

    With `unsafe`, Lambda layers with code in the file are rebuilt, and pickles are opened: both
    execute what the file's author wrote.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        return from_saved_model(path)
    kind = _kind(path)
    if kind == "pickle":
        return _unpickle(path, unsafe)
    if kind not in ("keras", "h5"):
        raise InputError(
            f"Model {path} must be a .keras or .h5 file or a SavedModel folder. Received: "
            f"{path.stat().st_size} bytes of another kind (or corrupt)."
        )
    if not unsafe and _LAMBDA.search(_config(path, kind)):
        raise InputError(
            f"Model {path} carries the code of a Lambda layer, which is not executed unless "
            "--unsafe (unsafe=True) is given."
        )
    with tempfile.TemporaryDirectory() as folder:
        # Keras goes by the suffix; the file may have another name.
        copy = pathlib.Path(folder) / f"model.{kind}"
        shutil.copyfile(path, copy)
        if kind == "h5":
            modernised(copy)
        try:
            return keras.models.load_model(copy, compile=False, safe_mode=not unsafe)
        except Exception as error:  # the causes have no common class
            raise InputError(f"Model {path} cannot be loaded: {_reason(error)}") from error


def _kind(path: pathlib.Path) -> str:
    try:
        with open(path, "rb") as file:
            start = file.read(8)
    except OSError as error:
        raise InputError(f"Model {path} cannot be read: {error.strerror}.") from None
    if start.startswith(b"\x89HDF"):
        return "h5"
    if start.startswith(b"PK"):
        return "keras"
    if start[:1] == b"\x80" and start[1:2] <= b"\x05" and len(start) > 1:
        return "pickle"
    return "unknown"


def _config(path: pathlib.Path, kind: str) -> str:
    """Returns the model's configuration as text, which nothing interprets."""
    try:
        if kind == "h5":
            with h5py.File(path, "r") as file:
                config = file.attrs.get("model_config")
        else:
            with zipfile.ZipFile(path) as archive:
                config = archive.read("config.json")
    except (OSError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
        raise InputError(f"Model {path} is truncated or corrupt: {_reason(error)}") from None
    if config is None:
        raise InputError(f"Model {path} holds weights only: save the whole model.")
    return config.decode(errors="replace") if isinstance(config, bytes) else str(config)


def _unpickle(path: pathlib.Path, unsafe: bool) -> keras.Model:
    if not unsafe:
        raise InputError(
            f"Model {path} is a pickle, which executes code when it is opened: it is not, unless "
            "--unsafe (unsafe=True) is given."
        )
    try:
        model: Any = pickle.loads(path.read_bytes())
    except Exception as error:  # a pickle raises what its author likes
        raise InputError(f"Model {path} cannot be unpickled: {_reason(error)}") from error
    if not isinstance(model, keras.Model):
        raise InputError(f"Model {path} must hold a keras.Model. Received: {type(model)}")
    return model


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Keras puts the cause at the end of a long first sentence that repeats the whole config.
    causes = [line for line in lines if line.startswith("Exception encountered")]
    return next(_shortened(causes or lines), type(error).__name__)


def _shortened(lines: list[str]) -> Iterator[str]:
    for line in lines:
        yield line if len(line) <= 300 else f"{line[:297]}..."
