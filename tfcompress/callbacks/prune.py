"""Pruning while training."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfcompress import pruning, schedules
from tfcompress.callbacks.channels import ChannelMasks
from tfcompress.callbacks.kernel_callback import KernelCallback
from tfcompress.errors import require, unknown
from tfcompress.structured.scores import SCORES as CHANNEL_SCORES
from tfcompress.weights import Kernel

SCOPES = ("layer", "global")
CHANNEL = "channel"  # the pattern of whole channels, which `remove_dead_channels` takes out


@dataclasses.dataclass(frozen=True)
class _Plan:
    """How one kernel is pruned."""

    schedule: Any
    score: Any
    pattern: Any
    update_every: int


class PruneOnSchedule(KernelCallback):
    """Sets the least important weights of each kernel to zero while the model trains.

    The share of zeros follows the schedule; a weight that has become zero stays zero, after every
    single optimizer step. The model's layers are left as they are: when training ends it is an
    ordinary Keras model whose kernels are sparse, and there is nothing to strip.

    Each epoch's `logs` receive `sparsity` (share of zeros over all pruned kernels, in [0, 1)),
    `prune_seconds` (time spent in finding masks) and, with pattern `channel`, `channel_sparsity`
    (share of the channels that the schedule counts that are silent).

    Args:
        schedule: sparsity over steps, counted from where this callback met the model; see
            `tfcompress.schedules`. If its `end_step` is None, the last quarter of the fit trains at
            the final sparsity. A warning says so if training ends before `end_step`.
        score: which weights go first; see `tfcompress.pruning.SCORES`.
        pattern: `unstructured`, `block` or `n_of_m`; see `tfcompress.pruning.PATTERNS`. Or
            `channel`: whole channels become silent, group by group (`tfc.channel_groups`); the
            schedule then counts channels, those aside of which a rule keeps all, `score` is one of
            `tfcompress.structured.SCORES`, and `tfc.remove_dead_channels(model)` takes them out
            after training.
        scope: `layer` prunes each kernel to the scheduled sparsity; `global` prunes all kernels
            together to it, so that each keeps what matters most over the whole model.
        rules: what differs for some kernels, e.g. `{"layers": "head/.*", "end": 0.5}` or
            `{"layers": ".*depthwise.*", "skip": "too few weights to spare"}`. Keys: `layers` (a
            regular expression that matches the whole path of kernel or layer; the last rule that
            matches wins), `skip` (a reason), `end`, `schedule`, `score`, `pattern`; for channels
            `skip` and `keep_at_least` (share of a layer's channels that stay).
        update_every: steps between two searches for new masks, at least 1. None: a twentieth of
            the schedule's ramp, at most 100.
        data: for channels' scores that need gradients or activations: (x, y) arrays, a
            `tf.data.Dataset` or `tfcompress.data.Data`.

    Each of schedule, score and pattern is a name, a `{name: arguments}` mapping or an object.

    Raises:
        InputError: before training starts, if an argument or a rule cannot be used.

    Source: Zhu and Gupta 2017, "To prune, or not to prune".

    Example:

        model.fit(x, y, epochs=10, callbacks=[
            tfc.PruneOnSchedule({"polynomial": {"end": 0.8, "end_step": 2000}})])
    """

    def __init__(
        self,
        schedule: Any,
        score: Any = "magnitude",
        pattern: Any = "unstructured",
        scope: str = "layer",
        rules: Sequence[Mapping[str, Any]] = (),
        update_every: int | None = None,
        data: Any = None,
    ):
        super().__init__()
        self.schedule = schedules.SCHEDULES.create(schedule)
        known = [*pruning.PATTERNS.names(), CHANNEL]
        if isinstance(pattern, str) and pattern not in known:
            raise unknown("pattern", pattern, known)
        by_channel = pattern == CHANNEL
        self.score = (CHANNEL_SCORES if by_channel else pruning.SCORES).create(score)
        self.pattern = CHANNEL if by_channel else pruning.PATTERNS.create(pattern)
        if scope not in SCOPES:
            raise unknown("scope", scope, SCOPES)
        self._check_update_every(update_every)
        self.scope = scope
        self.rules = tuple(rules)
        self.update_every = update_every
        self.data = data
        self._plans: dict[str, _Plan] = {}
        self._channels: ChannelMasks | None = None

    def select(self) -> list[Kernel]:
        if self.pattern == CHANNEL:
            found = ChannelMasks(self.model, self.score, self.scope, self.rules, self.data)
            self._channels, self.skipped = found, found.skipped
            plan = self._plan({})
            require(
                plan.schedule.end <= found.max_sparsity,
                "end of the schedule",
                f"must not be more than rules and one channel of each group leave, "
                f"{math.floor(found.max_sparsity * 1e4) / 1e4:g}",
                end=plan.schedule.end,
            )
            self._plans = dict.fromkeys((k.path for k in found.targets), plan)
            return found.targets
        targets, chosen = self._choose(("end", "schedule", "score", "pattern"))
        self._plans = {kernel.path: self._plan(chosen[kernel.path]) for kernel in targets}
        for path, plan in self._plans.items():
            most = plan.pattern.max_sparsity
            require(
                plan.schedule.end <= most,
                f"end of the schedule for {path}",
                f"must not be more than its pattern can reach, {most:g}",
                end=plan.schedule.end,
            )
            require(
                self.scope == "layer" or most == 1,
                "scope of PruneOnSchedule",
                f"must be layer for a pattern with a sparsity of its own, as {path} has",
                scope=self.scope,
            )
        return targets

    def update(self, previous_step, step):
        if previous_step is None:
            self._take_masks_from_weights()
        due = {}
        for kernel in self.targets:
            sparsity = self._sparsity(kernel, step)
            if previous_step is None or sparsity != self._sparsity(kernel, previous_step):
                due[kernel.path] = sparsity
        if not any(due.values()):
            return
        values = {kernel.path: kernel.value() for kernel in self.targets if kernel.path in due}
        if self._channels:
            masks = self._channels.masks(max(due.values()))
        else:
            masks = self._masks(due, values)
        for kernel in self.targets:
            if kernel.path in due:
                # What is pruned stays pruned, also where the pattern would rather spare it now.
                mask = masks[kernel.path] & self.projections[kernel.path].mask
                self.projections[kernel.path].set_mask(mask)
                kernel.variable.assign(np.where(mask, values[kernel.path], np.float32(0)))

    def _masks(
        self, due: dict[str, float], values: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Returns for each kernel that is due which of its weights stay, bool."""
        scores = {path: self._score(path, w) for path, w in values.items()}
        if self.scope == "global":
            sizes = np.array([w.size for w in values.values()])
            due = pruning.allocate(scores, float(np.dot(sizes, list(due.values())) / sizes.sum()))
        return {path: self._plans[path].pattern.mask(scores[path], due[path]) for path in due}

    def measures(self):
        values = [kernel.value() for kernel in self.targets]
        nonzeros = sum(np.count_nonzero(w) for w in values)
        channels = {"channel_sparsity": self._channels.sparsity()} if self._channels else {}
        return {
            "sparsity": 1 - nonzeros / sum(w.size for w in values),
            "prune_seconds": self.seconds,
        } | channels

    def missed(self, step):
        plans = [self._plans[kernel.path].schedule for kernel in self.targets]
        late = [schedule.end_step for schedule in plans if schedule(step) < schedule.end]
        return f"end_step={max(late)}: the final sparsity was not reached" if late else ""

    def _plan(self, rule: Mapping[str, Any]) -> _Plan:
        schedule = schedules.SCHEDULES.create(rule.get("schedule", self.schedule))
        if "end" in rule:
            schedule = dataclasses.replace(schedule, end=rule["end"])
        params = self.params or {}
        steps, epochs = params.get("steps"), params.get("epochs")
        total = steps * epochs if steps and epochs else None
        if total and getattr(self.model.optimizer, "gradient_accumulation_steps", None):
            total //= self.model.optimizer.gradient_accumulation_steps
        schedule = schedules.resolve(schedule, total)
        ramp = schedule.end_step - schedule.begin_step
        return _Plan(
            schedule,
            pruning.SCORES.create(rule["score"]) if "score" in rule else self.score,
            pruning.PATTERNS.create(rule["pattern"]) if "pattern" in rule else self.pattern,
            # About twenty searches make any ramp smooth; on a long one they cost nothing.
            self.update_every or min(100, max(1, ramp // 20)),
        )

    def _sparsity(self, kernel: Kernel, step: int) -> float:
        """The sparsity of the last update until `step`: updates are `update_every` steps apart,
        and one more falls on the step at which the schedule reaches its end."""
        plan = self._plans[kernel.path]
        schedule, every = plan.schedule, plan.update_every
        if schedule(step) == schedule.end:
            return schedule.end
        return schedule(schedule.begin_step + (step - schedule.begin_step) // every * every)

    def _score(self, path: str, w: np.ndarray) -> np.ndarray:
        score = self._plans[path].score
        scores = score.score(w)
        if self.scope == "global" and score.normalise:
            scores = scores / max(float(np.linalg.norm(scores)), 1e-30)
        # What is pruned goes first in every later search.
        return np.where(self.projections[path].mask, scores, -np.inf)

    def _take_masks_from_weights(self) -> None:
        """A resumed fit finds its masks in the weights, which are sparse to the last bit."""
        for kernel in self.targets:
            w = kernel.value()
            if w.any() and not w.all():
                self.projections[kernel.path].set_mask(w != 0)
