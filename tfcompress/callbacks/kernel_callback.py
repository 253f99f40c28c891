"""What the callbacks have in common: they count steps and project kernels."""

import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from tfcompress import projection, rules
from tfcompress.errors import InputError, require
from tfcompress.projection import Projection
from tfcompress.weights import Kernel, kernels

NO_KERNELS = (
    "needs at least one kernel that no rule skips; a subclassed model has its kernels once it was "
    "called on a batch"
)


class KernelCallback(keras.callbacks.Callback):
    """Projects kernels while the model trains; subclasses say which, when and onto what.

    Steps are those of `model.optimizer.iterations`, counted from where the optimizer stood when the
    callback met the model: an epoch does not start them again, a model that was trained before does
    not start half-way, and a fit that `BackupAndRestore` resumes goes on where it was.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rules: tuple[Mapping[str, Any], ...] = ()
        self.targets: list[Kernel] = []
        self.projections: dict[str, Projection] = {}
        self.skipped: dict[str, str] = {}
        self.seconds = 0.0
        self._added: list[Kernel] = []
        self._met: keras.Model | None = None
        self._first_iteration = 0
        self._previous_step: int | None = None

    def select(self) -> list[Kernel]:
        """Returns the kernels to act on, and checks all arguments against them."""
        raise NotImplementedError

    def update(self, previous_step: int | None, step: int) -> None:
        """Finds masks or groups again if that has become due since the previous step.

        `previous_step` is None at the start of a fit, which may be a resumed one: what was due is
        then found again in the weights. What is due depends on the two steps alone, so a resumed
        fit does what one that was never interrupted does.
        """
        raise NotImplementedError

    def measures(self) -> dict[str, float]:
        """Returns what `logs` receive at the end of an epoch."""
        return {}

    def missed(self, step: int) -> str:
        """Returns what was still to come at `step`, the last one: "" if nothing."""
        return ""

    def apply(self, step: int | None = None) -> None:
        """Brings the kernels to what is due at `step`; a custom training loop calls it every step.

        Masks and codebooks that are due are found again, and the kernels are projected onto them.

            callback.set_model(model)
            for step, batch in enumerate(batches):
                callback.apply(step)
                train_step(batch)
            callback.apply(step + 1)

        Args:
            step: number of optimizer steps done so far; read from `model.optimizer` if None.
        """
        if self.model is None:
            owner = type(self).__name__
            raise InputError(f"{owner} needs a model before apply: callback.set_model(model).")
        if not self.projections:
            self._install()
        step = self._step() if step is None else int(step)
        self._update(step)
        self._project()

    def set_model(self, model):
        super().set_model(model)
        # A loop that calls `fit` epoch by epoch with one callback goes on with one schedule.
        if model is not self._met:
            self._met = model
            self._first_iteration = 0
            if getattr(model, "optimizer", None) is not None:  # a loop may count its own steps
                self._first_iteration = self._step()
            self.projections = {}

    def on_train_begin(self, logs=None):
        # A subclassed model may get its weights in the first step; then they are met after it.
        if self.model.weights:
            self._install()

    def on_epoch_begin(self, epoch, logs=None):
        self.seconds = 0.0
        if self.projections and self._previous_step is None:
            # Not in on_train_begin: a BackupAndRestore further down the list restores there.
            self.apply()

    def on_train_batch_end(self, batch, logs=None):
        if self.projections:
            self._update(self._step())
        else:
            self.apply()

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            logs.update(self.measures())

    def on_train_end(self, logs=None):
        # Keras may just have replaced the weights by their moving averages (`use_ema`) or by those
        # of the best epoch: they are projected once more before the kernels are let go.
        self._project()
        if self._previous_step is not None and (missed := self.missed(self._previous_step)):
            # The same text for each `fit` of a loop, so that it is shown once.
            warnings.warn(
                f"{type(self).__name__}: training ended before {missed}. Steps count from where "
                "the callback met the model.",
                stacklevel=2,
            )
        projection.remove(self.model, self._added)
        self.projections = {}

    def _choose(self, keys: Sequence[str]) -> tuple[list[Kernel], dict[str, dict[str, Any]]]:
        """Returns the kernels that no rule skips, and by path the rule (`keys`) for each."""
        found = kernels(self.model)
        chosen = rules.resolve(self.rules, found, keys)
        self.skipped = {path: rule["skip"] for path, rule in chosen.items() if "skip" in rule}
        targets = [kernel for kernel in found if kernel.path not in self.skipped]
        require(targets, type(self).__name__, NO_KERNELS)
        return targets, chosen

    def _check_update_every(self, update_every: int | None) -> None:
        require(
            update_every is None or (type(update_every) is int and update_every >= 1),
            f"update_every of {type(self).__name__}",
            "must be None or an integer of at least 1",
            update_every=update_every,
        )

    def _install(self) -> None:
        self._previous_step = None
        self.targets = self.select()
        self._added = [
            kernel
            for kernel in self.targets
            if not isinstance(kernel.variable.constraint, Projection)
        ]
        self.projections = projection.install(self.model, self.targets)

    def _update(self, step: int) -> None:
        started = time.perf_counter()
        self.update(self._previous_step, step)
        self._previous_step = step
        self.seconds += time.perf_counter() - started

    def _project(self) -> None:
        for kernel in self.targets:
            kernel.variable.assign(self.projections[kernel.path].nearest(kernel.variable.value))

    def _step(self) -> int:
        optimizer = getattr(self.model, "optimizer", None)
        if optimizer is None:
            owner = type(self).__name__
            raise InputError(f"{owner} needs a compiled model, or a step: callback.apply(step).")
        iterations = optimizer.iterations
        try:
            count = int(iterations)  # four times as fast as the general way: it is read each step
        except TypeError:  # mirrored over replicas
            count = int(keras.ops.convert_to_numpy(iterations.value))
        return count - self._first_iteration
