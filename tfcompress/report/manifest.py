"""What a run needs to be repeated: versions, platform, seed, recipe, hashes of all files."""

import datetime
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Mapping
from typing import Any

import numpy as np

import tfcompress
from tfcompress.errors import InputError

PACKAGES = (
    "tensorflow",
    "keras",
    "ai-edge-litert",
    "numpy",
    "scipy",
    "scikit-learn",
    "numba",
    "tensorflow-model-optimization",
    "tf-keras",
)
_CHUNK_BYTES = 1 << 20


def manifest(
    recipe: Mapping[str, Any],
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    seed: int | None = None,
) -> dict[str, Any]:
    """Returns what a run needs to be repeated, as plain values that JSON can hold.

    Args:
        recipe: the resolved recipe.
        inputs: what went in, by name: anything that `sha256` takes, or None for what no file or
            array stands for (a built-in model).
        outputs: what came out, likewise.
        seed: the run's seed.

    Returns:
        `{"time", "versions", "platform", "seed", "recipe", "recipe_sha256", "inputs", "outputs"}`.
        `time` is now (UTC), the only value that two equal runs on one machine do not share.
        A package that is not installed has the version None.

    Raises:
        InputError: a file does not exist or cannot be read.

    Example:

    >>> facts = manifest({"seed": 17}, {"x_train": np.zeros((2, 8))}, {}, seed=17)
    >>> facts["inputs"]["x_train"][:8]
    '77a84ae0'
    """
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "platform": machine(),
        "seed": seed,
        "recipe": dict(recipe),
        "recipe_sha256": _recipe_hash(recipe),
        "inputs": _hashes(inputs),
        "outputs": _hashes(outputs),
    }


def sha256(value: Any) -> str:
    """Returns the SHA-256 of a file, a folder, bytes, an array, or a mapping of these, as hex.

    A file (path) and bytes are hashed as they are. A folder by the names below it and their
    contents, sorted; an array by its type, shape and values; a mapping by its keys and values.

    >>> sha256(b"abc")[:16]
    'ba7816bf8f01cfea'
    """
    if isinstance(value, bytes | bytearray | memoryview):
        return hashlib.sha256(value).hexdigest()
    if isinstance(value, Mapping):
        return _hash_of_items((str(key), value[key]) for key in sorted(value, key=str))
    if isinstance(value, str | os.PathLike):
        return _path_hash(pathlib.Path(value))
    array = np.ascontiguousarray(value)
    if array.dtype.hasobject:
        raise InputError(f"sha256 takes arrays of numbers or text. Received: {type(value)}")
    digest = hashlib.sha256(f"{array.dtype.str}{np.shape(value)}".encode())
    digest.update(array.tobytes() if array.dtype.kind in "Mm" else array.data)
    return digest.hexdigest()


def versions() -> dict[str, str | None]:
    """Returns the versions of Python and of the packages that decide a run's numbers."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    found["tfcompress"] = tfcompress.__version__
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def machine() -> dict[str, Any]:
    """Returns the operating system and the processor, without the machine's name."""
    return {
        "system": platform.system(),
        "release": platform.release(),
        "architecture": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
    }


def _processor() -> str | None:
    """Linux leaves `platform.processor()` empty, but the kernel knows the name."""
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or None


def _recipe_hash(recipe: Mapping[str, Any]) -> str:
    return sha256(json.dumps(recipe, sort_keys=True, separators=(",", ":")).encode())


def _hashes(values: Mapping[str, Any]) -> dict[str, str | None]:
    return {name: None if value is None else sha256(value) for name, value in values.items()}


def _path_hash(path: pathlib.Path) -> str:
    try:
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
            return _hash_of_items((file.relative_to(path).as_posix(), file) for file in files)
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from None


def _hash_of_items(items: Any) -> str:
    digest = hashlib.sha256()
    for name, value in items:
        digest.update(json.dumps([name, sha256(value)]).encode())
    return digest.hexdigest()
