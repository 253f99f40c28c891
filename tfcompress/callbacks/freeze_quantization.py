"""Stops what a quantization-aware model observes and learns of its grids."""

import numbers
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

    Raises:
        InputError: no step given, a negative one, a model with nothing to stop, or with ranges that
            would never start.

        model = tfc.quantize_aware(model, samples=x_train[:200])
        model.compile(...)
        model.fit(x_train, y_train, epochs=3, callbacks=[tfc.FreezeQuantization(800)])
    """

    def __init__(self, observers_step: int | None = None, learned_step: int | None = None):
        super().__init__()
        for name, step in (("observers_step", observers_step), ("learned_step", learned_step)):
            whole = isinstance(step, numbers.Integral) and not isinstance(step, bool)
            rule = "must be a whole number, at least 0"
            owner = f"{name} of FreezeQuantization"
            require(step is None or (whole and step >= 0), owner, rule, **{name: step})
        rule = "needs observers_step or learned_step"
        require(observers_step is not None or learned_step is not None, "FreezeQuantization", rule)
        self.observers_step = observers_step
        self.learned_step = learned_step
        self._met: keras.Model | None = None
        self._first = 0

    def set_model(self, model):
        super().set_model(model)
        # A loop that calls `fit` epoch by epoch with one callback goes on with one count.
        if model is not self._met:
            self._met = model
            self._first = int(keras.ops.convert_to_numpy(model.optimizer.iterations.value))

    def select(self) -> list[tuple[Any, int]]:
        """Returns the layers to stop and the step at which each stops; checks the arguments."""
        found = []
        layers = [x for x in self.model._flatten_layers() if hasattr(x, "stop")]
        for layer in layers:
            step = self.learned_step if layer.learns else self.observers_step
            if step is not None and (layer.learns or layer.follows):
                found.append((layer, step))
        rule = "needs a model of quantize_aware whose ranges follow or whose steps are learned"
        require(found, "FreezeQuantization", rule, observers_step=self.observers_step,
                learned_step=self.learned_step)  # fmt: skip
        return found

    def on_train_begin(self, logs=None):
        found = self.select()
        for layer, step in found:
            started = layer.learns or keras.ops.convert_to_numpy(layer.range).any()
            rule = "must be at least 1: ranges that have no start yet take it from the first batch"
            owner = "observers_step of FreezeQuantization"
            require(step > 0 or started, owner, rule, observers_step=step)
        for layer, step in found:
            layer.stop.at(self.model.optimizer.iterations, self._first + step)
        projection.forget_compiled_step(self.model)

    def on_train_end(self, logs=None):
        for layer, _ in self.select():
            layer.stop.never()
        projection.forget_compiled_step(self.model)
