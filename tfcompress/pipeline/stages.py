"""What each stage of a recipe does while it trains, and what it leaves as it was.

A new stage is a class in `tfcompress.recipe` and a case in `tfcompress.pipeline.structure` and in
each of the functions below.
"""

from collections.abc import Sequence

import keras

from tfcompress import clustered, rules, schedules, structured, wrappers
from tfcompress.callbacks import ClusterOnSchedule, FreezeQuantization, Preserve, PruneOnSchedule
from tfcompress.data import Data
from tfcompress.data.batches import steps_per_epoch
from tfcompress.errors import InputError
from tfcompress.pipeline.fit import compile_model
from tfcompress.pipeline.structure import transform
from tfcompress.recipe import (
    Cluster,
    ClusterOnce,
    DataKeys,
    FitKeys,
    Iterative,
    Prune,
    PruneChannels,
    QuantizeAware,
    RemoveChannels,
    Stage,
    Train,
)
from tfcompress.weights import kernels


def callbacks(stage: Stage, data: Data | None = None) -> list[keras.callbacks.Callback]:
    """Returns what acts on the weights while the stage trains."""
    found: list[keras.callbacks.Callback] = []
    if isinstance(stage, FitKeys) and stage.preserve:
        found.append(Preserve())
    match stage:
        case Prune():
            found.append(
                PruneOnSchedule(
                    stage.schedule,
                    score=stage.score,
                    pattern=stage.pattern,
                    scope=stage.scope,
                    rules=stage.rules,
                    update_every=stage.update_every,
                    data=data,
                )
            )
        case Cluster():
            found.append(
                ClusterOnSchedule(
                    stage.method,
                    begin_step=stage.begin_step,
                    block=stage.block,
                    levels=stage.levels,
                    per=stage.per,
                    keep_zeros=stage.keep_zeros,
                    grid=stage.grid,
                    gradients=stage.gradients,
                    rules=stage.rules,
                    update_every=stage.update_every,
                    freeze_step=stage.freeze_step,
                )
            )
        case Iterative():
            found.append(stage.build(data))
        case QuantizeAware() if any(step is not None for step in stage.steps().values()):
            found.append(FreezeQuantization(**stage.steps()))
    return found


def skipped(model: keras.Model, stage: Stage, acting: Sequence[object]) -> dict[str, str]:
    """Returns which kernels or layers the stage has left as they were, and why."""
    match stage:
        case QuantizeAware():
            return dict(wrappers.skipped(model))
        case ClusterOnce():
            chosen = rules.resolve(stage.rules, kernels(model), clustered.KEYS)
            return {path: rule["skip"] for path, rule in chosen.items() if "skip" in rule}
        case RemoveChannels():
            return structured.dead_channels(model, stage.tolerance, stage.largest_input).stay
        case PruneChannels():
            return structured.channel_groups(model).pinned
    return {k: v for callback in acting for k, v in getattr(callback, "skipped", {}).items()}


def check(
    model: keras.Model,
    stages: Sequence[Stage],
    data: Data,
    data_keys: DataKeys,
    from_logits: bool,
) -> None:
    """Refuses what could only go wrong later: each stage meets the model as it will find it.

    Rules that match no kernel, more clusters than weights, steps after the end of training,
    layers that cannot be quantized. The model keeps its weights.
    """
    for index, stage in enumerate(stages):
        try:
            model = transform(model, stage, None, seed=0)
            if isinstance(stage, FitKeys):
                steps = steps_per_epoch(data, stage.batch_size or data_keys.batch_size)
                compile_model(model, stage, steps, from_logits)
                _check_training(model, stage, steps, data)
        except InputError as error:
            raise InputError(f"Stage {index} ({stage.word}): {error}") from error


def _check_training(model: keras.Model, stage: FitKeys, steps: int, data: Data) -> None:
    total = steps * stage.epochs
    for callback in callbacks(stage, data):
        callback.set_params({"steps": steps, "epochs": stage.epochs})
        callback.set_model(model)
        callback.select()
    if isinstance(stage, Cluster) and stage.begin_step >= total:
        raise InputError(
            f"begin_step must come before the last of its {total} training steps. "
            f"Received: begin_step={stage.begin_step}"
        )
    if isinstance(stage, Prune):
        for schedule in [stage.schedule, *(r["schedule"] for r in stage.rules if "schedule" in r)]:
            last = schedules.resolve(schedule, total).end_step
            if last > total:
                raise InputError(
                    f"The schedule must end within its {total} training steps. "
                    f"Received: end_step={last}"
                )


def leading_training(stages: Sequence[Stage]) -> int:
    """Returns how many stages at the start only train: their result is the baseline."""
    count = 0
    while count < len(stages) and isinstance(stages[count], Train):
        count += 1
    return count
