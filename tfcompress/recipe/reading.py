"""From YAML text, mappings and `KEY=VALUE` to a checked `Recipe`; errors are one line each."""

import os
import pathlib
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import pydantic
import yaml

from tfcompress.data import SOURCES
from tfcompress.errors import InputError, unknown
from tfcompress.recipe import stages, structure
from tfcompress.recipe.base import Count, Keys
from tfcompress.recipe.keys import Recipe, Search
from tfcompress.recipe.stages import Stage

MODEL_FILES = ("h5", "keras", "savedmodel")

STAGES: dict[str, type[Stage]] = {
    stage.word: stage
    for stage in (
        stages.Train,
        stages.Prune,
        stages.Cluster,
        stages.QuantizeAware,
        stages.Iterative,
        structure.FoldBatchNorm,
        structure.Equalize,
        structure.CorrectBias,
        structure.ClusterOnce,
        structure.PruneChannels,
        structure.RemoveChannels,
        structure.MergeChannels,
        structure.Trim,
        structure.DropLayers,
        structure.PruneActivations,
        structure.SelectFeatures,
        structure.CropInputs,
        structure.PoolHead,
    )
}
CASCADE = "cascade"  # not a stage: it stands for its own stages, `rounds` times


class _Cascade(Keys):
    rounds: Count
    stages: list[Any]


def read(
    recipe: str | os.PathLike | Mapping[str, Any] | Recipe,
    overrides: Sequence[str] = (),
    data: str | None = None,
    model: str | None = None,
) -> Recipe:
    """Returns the recipe that is meant, with all defaults filled in.

    Args:
        recipe: a YAML file, a mapping of the same shape, or a `Recipe`.
        overrides: `KEY=VALUE` each; a key is dotted, stages count from 0
            ("stages.1.cluster.clusters=32"), and a value is YAML.
        data: a source that replaces the recipe's; its other data keys stay.
        model: a model that replaces the recipe's.

    Raises:
        InputError: a file, key, value, method or scheme that cannot be used; for a name, with the
            nearest right one.

    >>> read({"model": "digits_cnn", "data": "digits", "stages": [{"train": {"epochs": 3}}]},
    ...      overrides=["stages.0.train.epochs=4"]).stages[0].epochs
    4
    """
    if isinstance(recipe, Recipe):
        values = recipe.to_dict()
    elif isinstance(recipe, Mapping):
        values = dict(recipe)
    else:
        values = {"name": pathlib.Path(recipe).stem} | _read_yaml(pathlib.Path(recipe))
    values = {**values, "data": _data_keys(values.get("data"))}
    if data is not None:
        values["data"] = {**(values["data"] or {}), "source": data}
    if model is not None:
        values["model"] = model
    for override in overrides:
        values = _overridden(values, override)
    return _build(values)


def read_rules(path: str) -> list[dict[str, Any]]:
    """Returns the rules of a YAML file: a list of mappings, or a mapping with the key `rules`."""
    values = _load_yaml(pathlib.Path(path), "Rules")
    if isinstance(values, dict) and list(values) == ["rules"]:
        values = values["rules"]
    if not isinstance(values, list):
        raise InputError(f"Rules {path} must be a list of mappings. Received: {values!r:.60}")
    return values


def read_value(text: str, owner: str) -> Any:
    """Returns what a word of YAML on the command line says: a name, a number, a mapping."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise InputError(f"The value of {owner} is not YAML ({_one_line(error)}).") from error


def read_search(text: str, owner: str) -> Search:
    """Returns what a mapping of YAML on the command line says of a search, checked."""
    values = read_value(text, owner)
    if not isinstance(values, dict):
        raise InputError(f"{owner} must be a mapping, such as {{max_bytes: 60000}}. Got: {text}")
    return _validated(Search, values, owner)


def _read_yaml(path: pathlib.Path) -> dict[str, Any]:
    values = _load_yaml(path, "Recipe")
    if not isinstance(values, dict):
        raise InputError(f"Recipe {path} must be a mapping of keys. Received: {values!r:.60}")
    return values


def _load_yaml(path: pathlib.Path, kind: str) -> Any:
    try:
        text = path.read_text()
    except OSError as error:
        raise InputError(f"{kind} {path} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{kind} {path} is not a text file ({error.reason}).") from error
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise InputError(f"{kind} {path} is not YAML ({_one_line(error)}).") from error


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e-3 as a number and refuses a key that is given twice."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                line = node.start_mark.line + 1
                raise yaml.YAMLError(f"key '{key}' is given twice, line {line}")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _data_keys(value: Any) -> Any:
    """Returns `digits` as {source: digits} and {npz: FILE} as {source: npz:FILE}."""
    if isinstance(value, str):
        return {"source": value}
    if not isinstance(value, Mapping) or "source" in value:
        return value
    words = [key for key in value if key in SOURCES]
    if len(words) != 1:
        return value
    rest = {key: item for key, item in value.items() if key != words[0]}
    place = value[words[0]]
    return {"source": f"{words[0]}:{place}" if place else words[0]} | rest


def _overridden(values: dict[str, Any], override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"An override must be KEY=VALUE. Received: {override!r}")
    return _with(values, key.split("."), read_value(text, key), key)


def _with(node: Any, path: Sequence[str], value: Any, key: str) -> Any:
    """Returns `node` with `value` at `path`; what it leads through is copied, or made."""
    if not path:
        return value
    first, rest = path[0], path[1:]
    if isinstance(node, list):
        if not first.isdigit() or int(first) >= len(node):
            numbers = f"0 to {len(node) - 1}" if node else "none: the list is empty"
            raise InputError(f"'{first}' of {key} must be the number of an entry, {numbers}.")
        index = int(first)
        item = node[index]
        if rest and isinstance(item, str):  # `- train` is a stage without keys
            item = {item: {}}
        known = {*STAGES, CASCADE}
        is_stage = isinstance(item, Mapping) and len(item) == 1 and set(item) <= known
        if rest and is_stage and rest[0] not in item:
            raise unknown(f"stage in {key}: entry {index} is another,", rest[0], item)
        return [*node[:index], _with(item, rest, value, key), *node[index + 1 :]]
    if not isinstance(node, Mapping):
        node = {}  # nothing, or a method's name that now gets arguments
    return {**node, first: _with(node.get(first), rest, value, key)}


def _build(values: dict[str, Any]) -> Recipe:
    listed = values.get("stages")
    if listed is not None and not isinstance(listed, list):
        raise InputError(f"stages of the recipe must be a list. Received: {listed!r:.60}")
    if listed is not None:
        listed = [item for i, stage in enumerate(listed) for item in _rounds(i, stage)]
        values = {**values, "stages": [_stage(i, stage) for i, stage in enumerate(listed)]}
    model = values.get("model")
    if isinstance(model, Mapping):
        values["model"] = _model(model)
    return _validated(Recipe, values, "the recipe")


def _model(model: Mapping[str, Any]) -> str:
    """Returns {keras: FILE} as FILE, {mobilenet: {width: 0.25}} as mobilenet:0.25."""
    if len(model) == 1:
        ((word, value),) = model.items()
        if isinstance(value, Mapping) and len(value) == 1:
            (value,) = value.values()
        if isinstance(value, str) and word in MODEL_FILES:
            return value
        if word not in MODEL_FILES:
            return str(word) if value is None else f"{word}:{value}"
    raise InputError(
        "model of the recipe must be a file, a name, or a mapping with one key: {keras: FILE} or "
        f"{{mobilenet: {{width: 0.25}}}}. Received: {dict(model)!r}"
    )


def _rounds(index: int, stage: Any) -> list[Any]:
    """Returns the stages of a cascade, round after round; another stage as it is."""
    if not isinstance(stage, Mapping) or set(stage) != {CASCADE}:
        return [stage]
    cascade = _validated(_Cascade, stage[CASCADE] or {}, f"stages.{index}.{CASCADE}")
    return cascade.stages * cascade.rounds


def _stage(index: int, stage: Any) -> Stage:
    if isinstance(stage, Stage):
        return stage
    if isinstance(stage, str):
        stage = {stage: {}}
    if not isinstance(stage, Mapping) or len(stage) != 1:
        raise InputError(
            f"Entry {index} of stages must be one stage name with its arguments. "
            f"Received: {stage!r:.80}"
        )
    ((word, arguments),) = stage.items()
    if word not in STAGES:
        raise unknown("stage", str(word), [*STAGES, CASCADE])
    return _validated(STAGES[word], arguments or {}, f"stages.{index}.{word}")


def _validated(keys: Any, values: Any, owner: str) -> Any:
    try:
        return keys.model_validate(values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise _as_one_line(keys, first, owner) from None


def _as_one_line(keys: Any, error: Any, owner: str) -> InputError:
    """Returns the first of pydantic's errors as a line with owner, rule and value."""
    place = ".".join(str(part) for part in error["loc"] if not _is_branch(part))
    if error["type"] == "extra_forbidden":
        return unknown(f"key of {owner}", place.rpartition(".")[2], _known_keys(keys, error["loc"]))
    if error["type"] == "missing":
        return InputError(f"{owner} needs `{place}`.")
    cause = (error.get("ctx") or {}).get("error")
    if isinstance(cause, InputError):
        return cause
    rule = error["msg"].replace("Input should be", "must be")
    return InputError(f"`{place}` of {owner} {rule}. Received: {error['input']!r:.60}")


def _is_branch(part: Any) -> bool:
    """Whether a part of pydantic's location names the branch of a union, not a key."""
    return isinstance(part, str) and (part in ("str", "int", "float", "bool") or "[" in part)


def _known_keys(keys: Any, location: Sequence[Any]) -> list[str]:
    for part in location[:-1]:
        keys = keys.model_fields[part].annotation
        # Of an optional part, the part.
        keys = next((k for k in typing.get_args(keys) if hasattr(k, "model_fields")), keys)
    return list(keys.model_fields)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
