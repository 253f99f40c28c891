"""Stops what a quantization-aware model observes and learns of its grids."""

import numbers
import warnings
from typing import Any

import keras

from tfcompress import projection
from tfcompress.errors import require


class FreezeQuantization(keras.callbacks.Callback):
    """From an optimizer step on, ranges no longer follow and step sizes no longer learn.

    The weights then train towards grids that stand still. Whether a step has come is decided inside
    of the compiled training step by the optimizer's own counter: exact with `steps_per_execution`,
    and a fit that `BackupAndRestore` resumes stops where one that was never interrupted does. Steps
    are counted from where the optimizer stood when the callback met the model. After the `fit` the
    model's grids are free again.

    Args:
        observers_step: the activations' ranges follow the batches in the steps before this one; at
            least 0; None: always. Ranges that have no start yet need at least 1.
        learned_step: learned step sizes and clipping bounds move in the steps before this one; at
            least 0; None: always.
        statistics_step: BatchNorms that were left in float follow the batches before this step, and
            from the next call of the training step (of `steps_per_execution` steps) on use their
            moving statistics and are not trained; at least 0; None: always.

    Raises:
        InputError: no step given, a negative one, a model that is not quantization-aware, or with
            ranges that would never start. A model whose ranges stay anyway is told in a warning.

        model = tfc.quantize_aware(model, samples=x_train[:200])
        model.compile(...)
        model.fit(x_train, y_train, epochs=3, callbacks=[tfc.FreezeQuantization(800)])
    """

    def __init__(
        self,
        observers_step: int | None = None,
        learned_step: int | None = None,
        statistics_step: int | None = None,
    ):
        super().__init__()
        steps = {
            "observers_step": observers_step,
            "learned_step": learned_step,
            "statistics_step": statistics_step,
        }
        for name, step in steps.items():
            whole = isinstance(step, numbers.Integral) and not isinstance(step, bool)
            rule = "must be a whole number, at least 0"
            owner = f"{name} of FreezeQuantization"
            require(step is None or (whole and step >= 0), owner, rule, **{name: step})
        rule = "needs observers_step, learned_step or statistics_step"
        require(any(step is not None for step in steps.values()), "FreezeQuantization", rule)
        self.observers_step = observers_step
        self.learned_step = learned_step
        self.statistics_step = statistics_step
        self._met: keras.Model | None = None
        self._first = 0
        self._norms: list[Any] = []

    def set_model(self, model):
        super().set_model(model)
        # A loop that calls `fit` epoch by epoch with one callback goes on with one count.
        if model is not self._met:
            self._met = model
            self._first = self._iterations()

    def select(self) -> list[tuple[Any, int]]:
        """Returns the layers to stop and the step at which each stops; checks the arguments."""
        found = []
        layers = [x for x in self.model._flatten_layers() if hasattr(x, "stop")]
        for layer in layers:
            step = self.learned_step if layer.learns else self.observers_step
            if step is not None and (layer.learns or layer.follows):
                found.append((layer, step))
        given = {"observers_step": self.observers_step, "learned_step": self.learned_step}
        wanted = any(step is not None for step in given.values())
        rule = "needs a model of quantize_aware, whose ranges follow or whose steps are learned"
        require(layers or not wanted, "FreezeQuantization", rule, **given)
        rule = "needs a model with a BatchNorm that was left in float and is trained"
        require(
            self.statistics_step is None or self._free_norms(), "statistics_step", rule,
            statistics_step=self.statistics_step,
        )  # fmt: skip
        return found

    def on_train_begin(self, logs=None):
        found = self.select()
        if not found and self.statistics_step is None:
            warnings.warn(
                "FreezeQuantization has nothing to stop: ranges that samples gave stay, and "
                "learned ones stop at learned_step",
                stacklevel=2,
            )
        for layer, step in found:
            started = layer.learns or keras.ops.convert_to_numpy(layer.range).any()
            rule = "must be at least 1: ranges that have no start yet take it from the first batch"
            owner = "observers_step of FreezeQuantization"
            require(step > 0 or started, owner, rule, observers_step=step)
        for layer, step in found:
            layer.stop.at(self.model.optimizer.iterations, self._first + step)
        projection.forget_compiled_step(self.model)

    def on_train_batch_begin(self, batch, logs=None):
        if self.statistics_step is None or self._norms:
            return
        if self._iterations() - self._first >= self.statistics_step:
            self._norms = self._free_norms()
            for norm in self._norms:
                norm.trainable = False
            projection.forget_compiled_step(self.model)

    def on_train_end(self, logs=None):
        for norm in self._norms:
            norm.trainable = True
        self._norms = []
        found, done = self.select(), self._iterations() - self._first
        steps = [step for _, step in found]
        steps += [] if self.statistics_step is None else [self.statistics_step]
        late = [step for step in steps if step >= done > 0]
        if late:
            # The same text for each `fit` of a loop, so that it is shown once.
            warnings.warn(
                f"FreezeQuantization: training ended before step {min(late)}. Steps count from "
                "where the callback met the model.",
                stacklevel=2,
            )
        for layer, _ in found:
            layer.stop.never()
        projection.forget_compiled_step(self.model)

    def _free_norms(self) -> list[Any]:
        norm = keras.layers.BatchNormalization
        return [x for x in self.model._flatten_layers() if isinstance(x, norm) and x.trainable]

    def _iterations(self) -> int:
        return int(keras.ops.convert_to_numpy(self.model.optimizer.iterations.value))
