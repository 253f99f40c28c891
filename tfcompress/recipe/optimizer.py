"""The optimizer and the learning rate that a training stage asks for."""

import inspect
import math
from collections.abc import Mapping
from typing import Any

import keras

from tfcompress.errors import InputError, unknown

LEARNING_RATE_SCHEDULES = ("constant", "cosine", "exponential", "linear")
# What `exponential` leaves of the learning rate where `final_learning_rate` is zero: it never is.
EXPONENTIAL_END = 0.01
CLIPPING = ("clipnorm", "clipvalue", "global_clipnorm")
_NOT_OPTIMIZERS = {"Optimizer", "LossScaleOptimizer"}


def make_optimizer(
    optimizer: str | Mapping[str, Any], learning_rate: Any, clipping: Mapping[str, float | None]
) -> keras.optimizers.Optimizer:
    """Returns a new Keras optimizer.

    Args:
        optimizer: `adam`, `sgd`, ... or `{sgd: {momentum: 0.9}}` with arguments of its class.
        learning_rate: a number or a Keras learning-rate schedule.
        clipping: of gradients; at most one of `clipnorm` (each gradient), `global_clipnorm` (all
            together), `clipvalue` that is not None.

    Raises:
        InputError: an unknown optimizer or argument, with the nearest right one.
    """
    name, arguments = _name_and_arguments(optimizer)
    classes: dict[str, Any] = {
        key.lower(): cls
        for key, cls in vars(keras.optimizers).items()
        if inspect.isclass(cls) and key not in _NOT_OPTIMIZERS
    }
    if name.lower() not in classes:
        raise unknown("optimizer", name, classes)
    cls = classes[name.lower()]
    known = set(inspect.signature(cls.__init__).parameters)
    known -= {"self", "kwargs", "name", "learning_rate", *CLIPPING}
    for key in arguments:
        if key in ("learning_rate", *CLIPPING):
            raise InputError(f"`{key}` is a key of the stage, not of optimizer '{name}'.")
        if key not in known:
            raise unknown(f"argument of optimizer '{name}'", key, known)
    limits = {key: value for key, value in clipping.items() if value is not None}
    if len(limits) > 1:
        raise InputError(f"Gradients are clipped in one way only. Received: {limits}")
    try:
        return cls(learning_rate=learning_rate, **limits, **arguments)
    except (TypeError, ValueError) as error:
        raise InputError(f"optimizer '{name}' cannot be made ({error}).") from error


def _name_and_arguments(optimizer: str | Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    if isinstance(optimizer, str):
        return optimizer, {}
    if isinstance(optimizer, Mapping) and len(optimizer) == 1:
        ((name, arguments),) = optimizer.items()
        if isinstance(arguments or {}, Mapping):
            return str(name), arguments or {}
    raise InputError(
        f"An optimizer must be a name or {{name: arguments}} with one name. Received: {optimizer!r}"
    )


def learning_rate_at(
    word: str, initial: float, final: float, steps: int, warmup_steps: int = 0
) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """Returns the learning rate over the optimizer's steps, as Keras takes it.

    It falls from `initial` to `final` within `steps`, after it rose from zero in `warmup_steps`.
    Being a function of the optimizer's own count, it goes on exactly where a killed run stopped.
    """
    if word not in LEARNING_RATE_SCHEDULES:
        raise unknown("learning-rate schedule", word, LEARNING_RATE_SCHEDULES)
    if word == "constant" and not warmup_steps:
        return initial
    return LearningRate(word, initial, final, steps, warmup_steps)


@keras.saving.register_keras_serializable("tfcompress")
class LearningRate(keras.optimizers.schedules.LearningRateSchedule):
    """Rises linearly for `warmup_steps`, then follows `word` down to `final` at `steps`."""

    def __init__(self, word: str, initial: float, final: float, steps: int, warmup_steps: int = 0):
        self.word = word
        self.initial = initial
        self.final = final
        self.steps = steps
        self.warmup_steps = warmup_steps

    def __call__(self, step):
        ops = keras.ops
        step = ops.cast(step, "float32")
        left = max(1, self.steps - self.warmup_steps)
        progress = ops.clip((step - self.warmup_steps) / left, 0.0, 1.0)
        if self.word == "cosine":
            share = (1 + ops.cos(math.pi * progress)) / 2
            rate = self.final + (self.initial - self.final) * share
        elif self.word == "linear":
            rate = self.initial + (self.final - self.initial) * progress
        elif self.word == "exponential":
            end = self.final / self.initial if self.final > 0 else EXPONENTIAL_END
            rate = self.initial * ops.power(ops.cast(end, "float32"), progress)
        else:
            rate = self.initial * ops.ones_like(progress)
        if not self.warmup_steps:
            return rate
        return rate * ops.minimum((step + 1) / self.warmup_steps, 1.0)

    def get_config(self):
        return {
            "word": self.word,
            "initial": self.initial,
            "final": self.final,
            "steps": self.steps,
            "warmup_steps": self.warmup_steps,
        }
