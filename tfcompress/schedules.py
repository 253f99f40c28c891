"""When weights go: pure functions from the training step to the sparsity asked for.

    >>> from tfcompress import schedules
    >>> schedule = schedules.Polynomial(end=0.8, begin_step=0, end_step=2000)
    >>> [round(schedule(step), 3) for step in (0, 500, 1000, 2000, 9000)]
    [0.0, 0.462, 0.7, 0.8, 0.8]

Sparsity is the fraction of a kernel's weights that are zero, in [0, 1); a step is an optimizer
step. Before `begin_step` nothing is pruned; after `end_step` the masks stay as they are.
"""

import dataclasses
import math
import numbers
from typing import Any

from tfcompress.errors import InputError, require
from tfcompress.registry import Registry

SCHEDULES = Registry("schedule", __name__)


class Schedule:
    """What all schedules share: checked fields, and `schedule(step) -> sparsity`."""

    end: float
    begin_step: int
    end_step: int | None

    def __post_init__(self) -> None:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        for name in {"start", "end"} & set(values):
            self._require(_is_number(values[name]) and 0 <= values[name] < 1, name, "[0, 1)")
        for name in {"begin_step", "end_step"} & set(values):
            if name == "end_step" and values[name] is None:
                continue
            whole = isinstance(values[name], numbers.Integral) and values[name] >= 0
            self._require(whole, name, "a step: a whole number, at least 0")
        if values.get("end_step") is not None:
            last = values["end_step"] >= self.begin_step
            self._require(last, "end_step", f"at least begin_step, {self.begin_step}")
        if "start" in values:
            self._require(values["start"] <= self.end, "start", f"at most end, {self.end}")

    def __call__(self, step: int) -> float:
        """Returns the sparsity due at `step`, a fraction in [0, 1)."""
        if step < self.begin_step:
            return 0.0
        return float(self._sparsity(step))

    def _sparsity(self, step: int) -> float:
        raise NotImplementedError

    def _require(self, condition: Any, name: str, rule: str) -> None:
        value = {name: getattr(self, name)}
        require(condition, f"{name} of {type(self).__name__}", f"must be {_in(rule)}", **value)


@dataclasses.dataclass(frozen=True)
class Ramp(Schedule):
    """A schedule that leads from `start` at `begin_step` to `end` at `end_step`."""

    end: float
    start: float = 0.0
    begin_step: int = 0
    end_step: int | None = None

    def _sparsity(self, step: int) -> float:
        if self.end_step is None:
            raise InputError(
                f"end_step of {type(self).__name__} must be given, or filled in by "
                f"schedules.resolve, before it is called. Received: end_step=None"
            )
        if step >= self.end_step:
            return self.end
        return self._between((step - self.begin_step) / (self.end_step - self.begin_step))

    def _between(self, progress: float) -> float:
        """Returns the sparsity at `progress` in [0, 1) of the way."""
        raise NotImplementedError

    def _geometric(self, progress: float) -> float:
        """Each equal part of the way removes the same share of the weights that are left."""
        return 1 - (1 - self.start) * ((1 - self.end) / (1 - self.start)) ** progress


@SCHEDULES.register("polynomial")
@dataclasses.dataclass(frozen=True)
class Polynomial(Ramp):
    """Prunes fast at first, while there is much to spare, and ever more slowly towards the end.

    sparsity(t) = end + (start - end) * (1 - t)^power, with t in [0, 1] the share of the way from
    `begin_step` to `end_step`. `power` is positive; 1 is linear.

    Source: Zhu and Gupta 2017, "To prune, or not to prune".

    >>> Polynomial(end=0.8, end_step=2000)(1000)
    0.7
    """

    power: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(_is_number(self.power) and self.power > 0, "power", "a positive number")

    def _between(self, progress: float) -> float:
        return self.end + (self.start - self.end) * (1 - progress) ** self.power


@SCHEDULES.register("exponential")
@dataclasses.dataclass(frozen=True)
class Exponential(Ramp):
    """Prunes the same share of the weights that are left at every step.

    sparsity(t) = 1 - (1 - start) * ((1 - end) / (1 - start))^t, t as in `Polynomial`: the density
    decays exponentially.

    >>> round(Exponential(end=0.75, end_step=100)(50), 6)
    0.5
    """

    def _between(self, progress: float) -> float:
        return self._geometric(progress)


@SCHEDULES.register("cosine")
@dataclasses.dataclass(frozen=True)
class Cosine(Ramp):
    """Prunes slowly at both ends of the way and fastest in its middle.

    sparsity(t) = end + (start - end) * (1 + cos(pi t)) / 2, t as in `Polynomial`.

    >>> round(Cosine(end=0.8, end_step=100)(50), 6)
    0.4
    """

    def _between(self, progress: float) -> float:
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * progress)) / 2


@SCHEDULES.register("cascade")
@dataclasses.dataclass(frozen=True)
class Cascade(Ramp):
    """Prunes in `rounds` rounds; within a round the sparsity rests and the model recovers.

    The way from `begin_step` to `end_step` is cut into equal rounds. Each begins by removing the
    same share of the weights that the last one left, so that the last one reaches `end`:
    sparsity of round r = 1 - (1 - start) * ((1 - end) / (1 - start))^(r / rounds), r from 1.

    >>> cascade = Cascade(end=0.75, end_step=200, rounds=2)
    >>> [cascade(step) for step in (0, 99, 100, 200)]
    [0.5, 0.5, 0.75, 0.75]
    """

    rounds: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = isinstance(self.rounds, numbers.Integral) and self.rounds >= 1
        self._require(whole, "rounds", "a whole number, at least 1")

    def _between(self, progress: float) -> float:
        done = math.floor(progress * self.rounds) + 1
        return self.end if done >= self.rounds else self._geometric(done / self.rounds)


@SCHEDULES.register("constant")
@dataclasses.dataclass(frozen=True)
class Constant(Schedule):
    """Prunes to `end` at `begin_step` and keeps that sparsity; `end_step` changes nothing.

    >>> [Constant(end=0.5, begin_step=10)(step) for step in (9, 10, 1000)]
    [0.0, 0.5, 0.5]
    """

    end: float
    begin_step: int = 0
    end_step: int | None = None

    def _sparsity(self, step: int) -> float:
        return self.end


@SCHEDULES.register("one_shot")
@dataclasses.dataclass(frozen=True)
class OneShot(Schedule):
    """Prunes once, at `begin_step`, to `end`; the masks then stay as they are.

    >>> [OneShot(end=0.5, begin_step=10)(step) for step in (9, 10, 1000)]
    [0.0, 0.5, 0.5]
    """

    end: float
    begin_step: int = 0

    @property
    def end_step(self) -> int:  # type: ignore[override]
        """The last step at which weights are chosen: the first one."""
        return self.begin_step

    def _sparsity(self, step: int) -> float:
        return self.end


def resolve(schedule: Any, total_steps: int | None) -> Any:
    """Returns the schedule that is meant, with `end_step` filled in.

    Where `end_step` is None it becomes three quarters of `total_steps`, the number of the step at
    which training ends, so that the last quarter recovers. `schedule` is a name, {name: arguments}
    or an object, and is not changed. Raises `InputError` where both are None.

    >>> resolve(Polynomial(end=0.8), total_steps=400).end_step
    300
    """
    schedule = SCHEDULES.create(schedule)
    if schedule.end_step is not None:
        return schedule
    owner = f"end_step of {type(schedule).__name__}"
    require(
        total_steps is not None,
        owner,
        "must be given where the number of training steps is unknown",
        end_step=None,
    )
    end_step = int(total_steps) * 3 // 4  # type: ignore[arg-type]
    require(
        end_step >= schedule.begin_step,
        owner,
        f"is three quarters of the training's steps, {end_step}, unless given, "
        "and must not come before begin_step",
        begin_step=schedule.begin_step,
        total_steps=total_steps,
    )
    return dataclasses.replace(schedule, end_step=end_step)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _in(rule: str) -> str:
    return f"in {rule}" if rule.startswith("[") else rule
