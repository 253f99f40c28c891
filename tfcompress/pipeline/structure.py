"""What the stages of a recipe do to a model's structure, and how a resumed run finds it again."""

import json
from typing import Any

import keras

from tfcompress import clustered, recipe, rules, structured, wrappers
from tfcompress.data import Data
from tfcompress.weights import kernels

CALIBRATION_SAMPLES = 200  # images for the files by which bytes and latency are measured


def transform(
    model: keras.Model, stage: recipe.Stage, data: Data | None, seed: int, from_logits: bool = False
) -> keras.Model:
    """Returns the model with the structure that the stage trains: a new one, or `model` itself.

    Without `data` nothing is calibrated, and what only data can tell is left as it is.
    """
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
    match stage:
        case recipe.FoldBatchNorm():
            return structured.fold_batch_norm(model)
        case recipe.Equalize():
            return structured.equalize(model, stage.largest_factor, stage.sweeps, stage.unclip)
        case recipe.CorrectBias():
            return _correct_bias(model, stage, data, seed)
        case recipe.ClusterOnce():
            return _cluster(model, stage, data, loss)
        case recipe.QuantizeAware():
            if data is None and stage.samples:
                return wrappers.uncalibrated(model, stage.scheme, **stage.words())
            samples = data.samples(stage.samples, seed) if data and stage.samples else None
            return wrappers.quantize_aware(model, stage.scheme, samples, **stage.words())
        case recipe.PruneActivations():
            return wrappers.prune_activations(model, stage.keep, rules=stage.rules)
        case recipe.RemoveChannels():
            return structured.remove_dead_channels(model, stage.tolerance, stage.largest_input)
        case recipe.Trim():
            return structured.trim(model, stage.max_zeros, rules=stage.rules)
        case recipe.PoolHead():
            return structured.pool_head(model)
        case recipe.PruneChannels():
            return _prune_channels(model, stage, data, seed, loss)
    if data is None:
        return model
    match stage:
        case recipe.MergeChannels():
            return structured.merge_channels(model, data, stage.method, rules=stage.rules)
        case recipe.DropLayers():
            most = stage.max_loss_increase
            return structured.drop_layers(model, data, most, loss, rules=stage.rules)
        case recipe.SelectFeatures():
            keep, score = stage.keep, stage.score
            return structured.select_features(
                model, data, keep, score, loss, inside=True, seed=seed
            )[0]
        case recipe.CropInputs():
            return structured.crop_inputs(
                model, data, stage.max_saliency, loss, saliency=stage.saliency, step=stage.step
            )
    return model


def _correct_bias(
    model: keras.Model, stage: recipe.CorrectBias, data: Data | None, seed: int
) -> keras.Model:
    words = {key: getattr(stage, key) for key in ("bits", "granularity", "ranges", "rounding")}
    if data is None:
        rules.resolve(stage.rules, kernels(model), words)
        return model
    samples = data.samples(stage.samples, seed)
    return structured.correct_bias(model, samples, method=stage.method, rules=stage.rules, **words)


def _cluster(
    model: keras.Model, stage: recipe.ClusterOnce, data: Data | None, loss: Any
) -> keras.Model:
    words = stage.words()
    if data is None:
        return clustered.planned(model, **words)[0]
    if stage.importance is not None:
        words["importance"] = clustered.fisher(model, data, loss)
    return clustered.cluster(model, **words)


def _prune_channels(
    model: keras.Model, stage: recipe.PruneChannels, data: Data | None, seed: int, loss: Any
) -> keras.Model:
    settings: dict[str, Any] = {
        "scope": stage.scope,
        "per": stage.per,
        "round_to": stage.round_to,
        "rules": stage.rules,
    }
    if data is None:
        # What a check wants to know is whether the rules match and the budget can be reached.
        settings |= stage.budget if "keep_macs" in stage.budget else {"keep_parameters": 0.999}
        # Scores of weights are tried out, too: not every model has what they look at.
        # Neither time nor a loss is measured for that: others try out the words as well.
        settings["per"] = "macs" if stage.per == "latency" else stage.per
        settings["scope"] = "global" if stage.scope == "measured" else stage.scope
        known = structured.SCORES.create(stage.score).needs == "weights"
        return structured.prune_channels(
            model, score=stage.score if known else "random", **settings
        )
    samples = None if stage.scheme == "float32" else data.samples(CALIBRATION_SAMPLES, seed)
    settings |= stage.budget
    return structured.prune_channels(
        model,
        score=stage.score,
        data=data,
        loss=loss,
        scheme=stage.scheme,
        samples=samples,
        **settings,
    )


def is_structural(stage: recipe.Stage) -> bool:
    """Returns whether the stage's structure depends on weights or data, not on the recipe alone."""
    return not isinstance(
        stage,
        recipe.FitKeys
        | recipe.ClusterOnce
        | recipe.FoldBatchNorm
        | recipe.PruneActivations
        | recipe.PoolHead,
    )


def describe(model: keras.Model) -> str:
    """Returns a model's structure as JSON, from which `rebuilt` makes it again."""
    return json.dumps(keras.saving.serialize_keras_object(model))


def rebuilt(structure: str, like: keras.Model) -> keras.Model:
    """Returns the model of a structure, its weights fresh; `like` holds layers of its classes."""
    classes = {type(layer).__name__: type(layer) for layer in like._flatten_layers()}
    with keras.saving.custom_object_scope(classes):
        return keras.saving.deserialize_keras_object(json.loads(structure), safe_mode=False)


def changes(before: keras.Model, after: keras.Model) -> dict[str, str]:
    """Returns by path of the kernel what became of its shape: "3x3x16x32 -> 3x3x12x20", "gone"."""

    def shapes(model: keras.Model) -> dict[str, str]:
        return {k.path: "x".join(map(str, k.variable.shape)) for k in kernels(model)}

    old, new = shapes(before), shapes(after)
    changed = {
        path: f"{shape} -> {new[path]}" if path in new else "gone"
        for path, shape in old.items()
        if new.get(path) != shape
    }
    return changed | {path: f"new: {shape}" for path, shape in new.items() if path not in old}
