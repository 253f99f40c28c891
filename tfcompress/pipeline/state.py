"""What is kept of a run between two processes: variables and progress, in files never half-written.

A run's folder has `stages/NUMBER-NAME/` for each stage: `state.npz`, from which the run goes on,
and `model.keras`, the stage's result. Where the recipe alone tells the model's structure, the model
is built again from it, so that any model resumes that the recipe can make; where weights or data
have decided the structure, it is kept in the state.
"""

import contextlib
import dataclasses
import fcntl
import json
import pathlib
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from tfcompress.errors import InputError
from tfcompress.files import written_whole

_PARTS = ("model", "optimizer", "sharing")  # lists of arrays


@dataclasses.dataclass(frozen=True)
class State:
    """A stage's state after an epoch.

    fingerprint: of all that led to it. epoch: epochs done. history: lists by name, one number per
    epoch. model, optimizer: the values of their variables. sharing: of the variables by which
    callbacks keep weights shared. record: the stage's entry of
    `report.json` when it is finished, else None. structure: of the model as JSON, where the recipe
    alone does not tell it.
    """

    fingerprint: str
    epoch: int
    history: dict[str, list[float]]
    seconds: float
    model: list[np.ndarray]
    optimizer: list[np.ndarray]
    sharing: list[np.ndarray] = dataclasses.field(default_factory=list)
    record: dict[str, Any] | None = None
    structure: str = ""

    def write(self, path: pathlib.Path) -> None:
        arrays = {
            f"{part}_{i}": array for part in _PARTS for i, array in enumerate(getattr(self, part))
        }
        facts = ("fingerprint", "epoch", "history", "seconds", "record", "structure")
        arrays["facts"] = np.array(json.dumps({name: getattr(self, name) for name in facts}))
        with written_whole(path) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    @staticmethod
    def read(path: pathlib.Path, fingerprint: str) -> "State | None":
        """Returns the state in `path`; None if there is none, or of another run."""
        try:
            with np.load(path, allow_pickle=False) as archive:
                facts = json.loads(str(archive["facts"]))
                if facts["fingerprint"] != fingerprint:
                    return None
                arrays = {key: archive[key] for key in archive.files if key != "facts"}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None  # nothing there, or a disk that failed: the stage begins anew
        lists: dict[str, Any] = {part: _numbered(arrays, part) for part in _PARTS}
        return State(**facts, **lists)


def _numbered(arrays: dict[str, np.ndarray], part: str) -> list[np.ndarray]:
    return [arrays[f"{part}_{i}"] for i in range(sum(key.startswith(part) for key in arrays))]


def variables(model: keras.Model) -> list[keras.Variable]:
    """Returns all that decides what the model computes and how it trains on.

    Weights, statistics, ranges, and the states of the random generators of its layers; not the
    metrics, which start again each epoch.
    """
    metrics = {id(variable) for variable in model.metrics_variables}
    return [variable for variable in model.variables if id(variable) not in metrics]


def values(found: Sequence[keras.Variable]) -> list[np.ndarray]:
    return [keras.ops.convert_to_numpy(variable.value) for variable in found]


def assign(found: Sequence[keras.Variable], arrays: Sequence[np.ndarray]) -> None:
    for variable, array in zip(found, arrays, strict=True):
        variable.assign(array)


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Makes the run's folder and holds it; the lock ends with the process, however it ends."""
    try:
        (folder / "stages").mkdir(parents=True, exist_ok=True)
        with open(folder / "stages" / ".lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"Another run is at work in {folder}.") from None
            for leftover in (folder / "stages").glob("*/.*"):
                leftover.unlink()  # of a run that was killed while it wrote
            yield
    except OSError as error:
        where = error.filename or folder
        raise InputError(f"Output {where} cannot be written ({error.strerror}).") from error
