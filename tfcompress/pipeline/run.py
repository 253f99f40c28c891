"""`run_recipe`: a recipe from its first stage to its files."""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfcompress import data as data_sources
from tfcompress import measure, models, recipe
from tfcompress.data import Data
from tfcompress.errors import InputError
from tfcompress.pipeline import stages as stage_work
from tfcompress.pipeline import structure
from tfcompress.pipeline.determinism import deterministic, start_seed
from tfcompress.pipeline.finish import Baseline, accuracy, finish
from tfcompress.pipeline.fit import fit, save
from tfcompress.pipeline.state import State, assign, locked, values, variables
from tfcompress.recipe import FitKeys, Recipe, Stage

MODEL_SEED, STAGE_SEED = 0, 1


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run made: its folder, the content of `report.json`, the compressed model."""

    output: pathlib.Path
    record: dict[str, Any]
    model: keras.Model

    @property
    def passed(self) -> bool:
        return self.record["passed"]

    @property
    def problems(self) -> list[str]:
        """One sentence for each check that failed."""
        return [check["problem"] for check in self.record["checks"] if not check["passed"]]


def run_recipe(
    plan: str | os.PathLike | Mapping[str, Any] | Recipe,
    output: str | os.PathLike | None = None,
    data: str | None = None,
    model: str | None = None,
    overrides: Sequence[str] = (),
    unsafe: bool = False,
    say: Callable[[str], None] | None = None,
) -> Result:
    """Runs a recipe and writes a compressed, verified, measured `.tflite` with its report.

    A run that was killed goes on, with the same arguments, at the stage and epoch that it had not
    finished, and ends with the same weights and the same `model.tflite`, to the bit. If recipe,
    data or model have changed meanwhile, the stages that depend on the change begin anew.

    Args:
        plan: the recipe: a YAML file or a mapping of the same shape.
        output: the folder for model.keras, model.tflite, baseline.tflite (the model before
            compression, float32), recipe.yaml, report.json, report.html, manifest.json, and
            stages/ with each stage's result. None: `runs/NAME`, after the recipe.
        data, model: replace the recipe's source and model.
        overrides: `KEY=VALUE` with dotted keys, e.g. "stages.1.cluster.clusters=32".
        unsafe: load models that carry Python code, which is then executed.
        say: is called with each line of progress; by default they go to stderr.

    Raises:
        InputError: before anything is written: what cannot be used. While training: a loss that
            is not finite.

    The random seeds of Python, NumPy and TensorFlow are set from the recipe's.

        result = tfc.run_recipe("configs/digits.yaml", overrides=["stages.1.prune.end=0.9"])
        print(result.record["after"]["accuracy"])
    """
    resolved = recipe.read(plan, overrides, data, model)
    folder = pathlib.Path(output or pathlib.Path("runs") / resolved.name)
    tell = say or (lambda line: print(line, file=sys.stderr, flush=True))
    with deterministic():
        loaded = load_data(resolved)
        start_seed(resolved.seed, MODEL_SEED)
        network = models.load(resolved.model, unsafe, loaded.shape, loaded.classes)
        from_logits = not are_probabilities(check_model(network, loaded))
        stage_work.check(network, resolved.stages, loaded, resolved.data, from_logits)
        with locked(folder):
            run = _Run(resolved, loaded, from_logits, folder, tell)
            network, baseline, records = run.stages(network)
            record = finish(resolved, loaded, network, baseline, from_logits, records, folder, tell)
    return Result(folder, record, network)


def load_data(resolved: Recipe) -> Data:
    """Returns the recipe's data, split by its seed."""
    keys = resolved.data
    size = tuple(keys.size) if isinstance(keys.size, list) else keys.size
    return data_sources.load(
        keys.source,
        validation=keys.validation,
        seed=resolved.seed,
        standardize=keys.standardize,
        test=keys.test,
        size=size,  # type: ignore[arg-type]
    )


def check_model(model: keras.Model, data: Data) -> np.ndarray:
    """Refuses a model that does not fit the data; returns its outputs (n, classes) for some."""
    owner = f"Model '{model.name}'"
    inputs = keras.tree.flatten(model.inputs or [])
    if inputs:
        shape = tuple(inputs[0].shape)[1:]
        fits = len(shape) == len(data.shape) and all(
            want in (None, got) for want, got in zip(shape, data.shape, strict=True)
        )
        if len(inputs) > 1 or not fits:
            raise InputError(
                f"{owner} must take the images of {data.source}, {data.shape}. "
                f"Received: {len(inputs)} input(s) of shape {shape}"
            )
    try:
        outputs = model(data.samples(32), training=False)
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{owner} does not take images of shape {data.shape} ({reason})."
        ) from error
    shapes = [tuple(y.shape) for y in keras.tree.flatten(outputs)]
    if len(shapes) != 1 or len(shapes[0]) != 2 or shapes[0][1] != data.classes:
        raise InputError(
            f"{owner} must have one output of {data.classes} units, one per class of "
            f"{data.source}. Received: {', '.join(str((None, *s[1:])) for s in shapes)}"
        )
    return keras.ops.convert_to_numpy(keras.tree.flatten(outputs)[0])


def are_probabilities(outputs: np.ndarray) -> bool:
    """Whether a model's outputs (n, classes) are those of a softmax.

    Told from values, not from the last layer's type, which a wrapper or a model of the user's own
    hides: logits that are all positive and sum to 1 in every row do not happen.
    """
    return bool((outputs >= 0).all() and np.allclose(outputs.sum(axis=-1), 1, atol=1e-3))


class _Run:
    """The stages of one run, each from what its predecessor left."""

    def __init__(
        self,
        resolved: Recipe,
        data: Data,
        from_logits: bool,
        folder: pathlib.Path,
        say: Callable[[str], None],
    ):
        self._recipe = resolved
        self._data = data
        self._from_logits = from_logits
        self._folder = folder
        self._say = say

    def stages(self, model: keras.Model) -> tuple[keras.Model, Baseline, list[dict[str, Any]]]:
        """Returns the model after the last stage, the one before compression, and the records."""
        todo = self._recipe.stages
        leading = stage_work.leading_training(todo)
        self._forget_other_stages()
        fingerprint = self._first_fingerprint(model)
        baseline = Baseline.of(model)
        records = []
        for index, stage in enumerate(todo):
            fingerprint = _hash(fingerprint, index, stage.word, _arguments(stage))
            model, record = self._stage(index, stage, model, fingerprint)
            records.append(record)
            if index < leading:
                baseline = Baseline.of(model)
        return model, baseline, records

    def _stage(
        self, index: int, stage: Stage, model: keras.Model, fingerprint: str
    ) -> tuple[keras.Model, dict[str, Any]]:
        place = self._place(index, stage)
        path = place / "state.npz"
        title = f"stage {index + 1} of {len(self._recipe.stages)}: {stage.word}"
        saved = State.read(path, fingerprint)
        if saved is not None and saved.record is not None:
            self._say(f"{title}, done before")
            if saved.structure:
                model = structure.rebuilt(saved.structure, like=model)
            else:
                model = structure.transform(model, stage, None, seed=0)
            assign(variables(model), saved.model)
            return model, saved.record
        self._say(title)
        place.mkdir(exist_ok=True)
        seed = start_seed(self._recipe.seed, STAGE_SEED, index)
        before = model
        model = structure.transform(model, stage, self._data, seed, self._from_logits)
        acting = stage_work.callbacks(stage, self._data)
        state = State(fingerprint, 0, {}, 0.0, [], [])
        if isinstance(stage, FitKeys):
            state = fit(
                model,
                stage,
                self._data,
                self._recipe.data,
                self._from_logits,
                acting,
                path,
                fingerprint,
                seed,
                self._say,
            )
        record = self._record(index, stage, model, state, acting)
        if model is not before:
            record["changed"] = structure.changes(before, model)
        save(model, place / "model.keras", self._from_logits)
        finished = dataclasses.replace(
            state,
            model=values(variables(model)),
            optimizer=[],
            record=record,
            structure=structure.describe(model) if structure.is_structural(stage) else "",
        )
        finished.write(path)
        return model, record

    def _record(
        self, index: int, stage: Stage, model: keras.Model, state: State, acting: Sequence[Any]
    ) -> dict[str, Any]:
        """Returns the stage's entry of `report.json`."""
        measures = measure.measure_model(model).to_dict()
        return {
            "name": stage.word,
            "index": index,
            "arguments": _arguments(stage),
            "epochs": state.epoch,
            "history": state.history,
            "seconds": state.seconds,
            "skipped": stage_work.skipped(model, stage, acting),
            "accuracy": accuracy(model, self._data, "validation"),
            "measures": measures,
            "storage": measures["storage"],
        }

    def _place(self, index: int, stage: Stage) -> pathlib.Path:
        return self._folder / "stages" / f"{index}-{stage.word}"

    def _forget_other_stages(self) -> None:
        """Removes the results of stages that the recipe does not have (any more)."""
        places = {self._place(i, stage).name for i, stage in enumerate(self._recipe.stages)}
        for path in (self._folder / "stages").iterdir():
            if path.is_dir() and path.name not in places:
                shutil.rmtree(path)

    def _first_fingerprint(self, model: keras.Model) -> str:
        """Returns the hash of all that the first stage depends on beside its own keys."""
        try:
            described = keras.saving.serialize_keras_object(model)
            described.pop("compile_config", None)
            structure = json.dumps(described, default=str)
        except (NotImplementedError, TypeError, ValueError):
            structure = type(model).__qualname__  # a model that cannot be described
        weights = hashlib.sha256()
        for array in values(variables(model)):
            weights.update(f"{array.shape}{array.dtype}".encode() + array.tobytes())
        keys = self._recipe.data
        return _hash(
            structure,
            weights.hexdigest(),
            self._data.fingerprint,
            self._recipe.seed,
            [keys.batch_size, keys.augment.model_dump()],
            [importlib.metadata.version(name) for name in ("tensorflow", "keras", "numpy")],
        )


def _arguments(stage: Stage) -> dict[str, Any]:
    return recipe.plain(stage)


def _hash(*facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
