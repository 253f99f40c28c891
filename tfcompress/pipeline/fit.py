"""One stage's training, which goes on after `kill -9` where its last epoch ended.

Everything that training depends on is either in the variables that are saved after each epoch, or
a function of seed and epoch: batches and augmentation (`data.batches`), the learning rate (a
function of the optimizer's step count), masks and clusters (found again in the weights, but for
what the forms of sharing know beside them).
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from tfcompress import projection
from tfcompress.data import Data
from tfcompress.data.batches import evaluation_batches, steps_per_epoch, training_batches
from tfcompress.errors import InputError
from tfcompress.pipeline.state import State, assign, values, variables
from tfcompress.recipe import DataKeys, FitKeys
from tfcompress.recipe.optimizer import learning_rate_at, make_optimizer


def fit(
    model: keras.Model,
    keys: FitKeys,
    data: Data,
    data_keys: DataKeys,
    from_logits: bool,
    callbacks: Sequence[keras.callbacks.Callback],
    path: pathlib.Path,
    fingerprint: str,
    seed: int,
    say: Callable[[str], None],
) -> State:
    """Trains the model as the stage's keys say and returns the state after the last epoch.

    Args:
        model: its weights change.
        from_logits: whether the model's outputs are logits, and not probabilities.
        path: where the state is written after each epoch, and read from at the start.
        fingerprint: of all that the stage depends on; a state with another is not used.
    """
    batch_size = keys.batch_size or data_keys.batch_size
    compile_model(model, keys, steps_per_epoch(data, batch_size), from_logits)
    model.optimizer.build(model.trainable_variables)
    saved = State.read(path, fingerprint) or State(fingerprint, 0, {}, 0.0, [], [])
    resume = Resume(saved, path, f"{keys.word}", keys.epochs, say)
    if saved.epoch == keys.epochs:
        resume.restore(model)
        return saved
    model.fit(
        training_batches(
            data, batch_size, keys.epochs, saved.epoch, seed, data_keys.augment.build()
        ),
        steps_per_epoch=steps_per_epoch(data, batch_size),
        epochs=keys.epochs,
        initial_epoch=saved.epoch,
        validation_data=evaluation_batches(data, "validation"),
        # Last: it saves what the others did, and restores before they look at the weights.
        callbacks=[*callbacks, resume],
        shuffle=False,  # the batches are in a random order already
        verbose=0,
    )
    return dataclasses.replace(resume.state, model=values(variables(model)))


def compile_model(model: keras.Model, keys: FitKeys, steps: int, from_logits: bool) -> None:
    """Compiles the model with the stage's optimizer and the loss that fits its outputs."""
    rate = learning_rate_at(
        keys.learning_rate_schedule,
        keys.learning_rate,
        keys.final_learning_rate,
        steps * keys.epochs,
        steps * keys.warmup_epochs,
    )
    _compile(model, make_optimizer(keys.optimizer, rate, keys.clipping), from_logits)


def save(model: keras.Model, path: pathlib.Path, from_logits: bool) -> None:
    """Saves the model compiled, but without what its optimizer remembers of the training."""
    _compile(model, "adam", from_logits)
    model.save(path)


def _compile(model: keras.Model, optimizer: Any, from_logits: bool) -> None:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
    model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"])


class Resume(keras.callbacks.Callback):
    """Restores a state when training begins, writes it after each epoch, tells of each epoch."""

    def __init__(
        self, state: State, path: pathlib.Path, name: str, epochs: int, say: Callable[[str], None]
    ):
        super().__init__()
        self.state = state
        self._path = path
        self._name = name
        self._epochs = epochs
        self._say = say
        self._started = 0.0

    def restore(self, model: keras.Model) -> None:
        if self.state.epoch:
            self._say(f"{self._name}: goes on after epoch {self.state.epoch} of {self._epochs}")
            assign(variables(model), self.state.model)
            assign(model.optimizer.variables, self.state.optimizer)

    def on_train_begin(self, logs=None):
        self.restore(self.model)
        if self.state.epoch:
            assign(projection.variables(self.model), self.state.sharing)

    def on_epoch_begin(self, epoch, logs=None):
        self._started = time.perf_counter()

    def on_epoch_end(self, epoch, logs: Any = None):
        numbers = {key: float(value) for key, value in (logs or {}).items()}
        found = values(variables(self.model))
        finite = all(np.isfinite(array).all() for array in found if array.dtype.kind == "f")
        if not finite or not np.isfinite(numbers["loss"]):
            raise InputError(
                f"Training in stage '{self._name}' diverged in epoch {epoch + 1}: a lower "
                f"learning_rate or global_clipnorm helps. Received: loss={numbers['loss']}"
                f"{'' if finite else ' and weights that are not finite'}"
            )
        numbers["step"] = int(keras.ops.convert_to_numpy(self.model.optimizer.iterations.value))
        seconds = time.perf_counter() - self._started
        self.state = State(
            fingerprint=self.state.fingerprint,
            epoch=epoch + 1,
            history={k: [*self.state.history.get(k, []), v] for k, v in numbers.items()},
            seconds=self.state.seconds + seconds,
            model=found,
            optimizer=values(self.model.optimizer.variables),
            sharing=values(projection.variables(self.model)),
        )
        self.state.write(self._path)
        self._say(epoch_line(self._name, epoch + 1, self._epochs, numbers, seconds))


def epoch_line(
    name: str, epoch: int, epochs: int, numbers: dict[str, float], seconds: float
) -> str:
    """Returns an epoch as one line.

    >>> epoch_line("prune", 2, 10, {"loss": 0.5, "accuracy": 0.9, "sparsity": 0.25}, 1.2)
    'prune  2/10  loss 0.5000  accuracy 90.00 %  sparsity 25.0 %  1.2 s'
    """
    parts = [f"{name} {epoch:>{len(str(epochs))}}/{epochs}"]
    for key, form in {
        "loss": "loss {:.4f}",
        "accuracy": "accuracy {:.2%}",
        "val_accuracy": "validation {:.2%}",
        "sparsity": "sparsity {:.1%}",
        "distinct_values": "distinct {:.0f}",
    }.items():
        if key in numbers:
            parts.append(form.format(numbers[key]).replace("%", " %"))
    return "  ".join([*parts, f"{seconds:.1f} s"])
