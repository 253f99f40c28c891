"""The data and the loss by which structures are judged: every form in which users have them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from numbers import Integral
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress import graph
from tfcompress.data import Data
from tfcompress.errors import InputError, call, require

Batch = tuple[Any, Any]  # (x, y); y is None where the data has no labels
Loss = Callable[[Any, Any], Any]  # (y, outputs) -> a scalar tensor


def batches(data: Any, batch_size: int = 64, most: int | None = None) -> Iterator[Batch]:
    """Yields (x, y) batches, at most `most` of them (None: all, once, in order).

    Args:
        data: (x, y) arrays, where x and y may be lists or dicts of arrays for several inputs or
            outputs; or x alone, an array, list or dict; or `tfcompress.data.Data`, of which the
            training split is taken; or a `tf.data.Dataset` or a Keras `PyDataset` of (x, y)
            batches or of x alone, whose batches come as they are.
        batch_size: rows of a batch of arrays or `Data`; the last may be smaller.
        most: where arrays or `Data` hold more, the rows are drawn at random, the same every time:
            files are often sorted by class.

    Raises:
        InputError: empty data, arrays of different lengths, sample weights, an endless dataset
            without `most`.

    >>> [len(x) for x, y in batches((np.zeros((5, 2)), np.zeros(5)), batch_size=2)]
    [2, 2, 1]
    """
    rule = "must be a whole number of at least 1"
    whole = isinstance(batch_size, Integral) and batch_size >= 1
    require(whole, "batch_size", rule, batch_size=batch_size)
    whole = most is None or (isinstance(most, Integral) and most >= 1)
    require(whole, "number of batches", rule, batches=most)
    found = False
    for batch in _batches(data, batch_size, most):
        found = True
        yield batch
    require(found, "data", "must not be empty", data=type(data).__name__)


def _batches(data: Any, batch_size: int, most: int | None) -> Iterator[Batch]:
    if isinstance(data, Data):
        for rows in _rows(len(data.x_train), batch_size, most):
            yield data.prepare(data.x_train[rows]), data.y_train[rows]
    elif hasattr(data, "element_spec") or isinstance(data, keras.utils.PyDataset):
        yield from _elements(data, most)
    else:
        x, y = _pair(data if isinstance(data, tuple) else (data,), "data")
        arrays = keras.tree.map_structure(np.asarray, [x] if y is None else [x, y])
        flat = keras.tree.flatten(arrays)
        rule = "must be (x, y) or x as arrays, a tf.data.Dataset, a PyDataset or Data"
        require(all(array.ndim for array in flat), "data", rule, data=type(data).__name__)
        lengths = {len(array) for array in flat}
        require(
            len(lengths) == 1, "arrays of data", "must have one length", lengths=sorted(lengths)
        )
        for rows in _rows(lengths.pop(), batch_size, most):
            part = keras.tree.map_structure(lambda array, rows=rows: array[rows], arrays)
            yield part[0], None if y is None else part[1]


def _rows(length: int, batch_size: int, most: int | None) -> Iterator[Any]:
    if most is None or most * batch_size >= length:
        for start in range(0, length, batch_size):
            yield slice(start, start + batch_size)
    else:
        chosen = np.random.default_rng(0).permutation(length)[: most * batch_size]
        yield from np.sort(chosen.reshape(most, batch_size), axis=1)


def _elements(data: Any, most: int | None) -> Iterator[Batch]:
    if isinstance(data, keras.utils.PyDataset):
        count = data.num_batches
        elements: Any = (data[i] for i in range(count if count is not None else most or 0))
        endless = count is None
    else:
        elements, endless = data, data.cardinality() == tf.data.INFINITE_CARDINALITY
    require(
        most is not None or not endless, "data", "must be finite, or the number of batches given"
    )
    for number, element in enumerate(elements):
        if number == most:
            return
        yield _pair(element if isinstance(element, tuple) else (element,), "batches of data")


def _pair(pair: Any, owner: str) -> Batch:
    require(
        len(pair) in (1, 2),
        owner,
        "must be (x, y), or x alone; several inputs go into a list or dict; no sample weights",
        parts=len(pair),
    )
    return pair[0], pair[1] if len(pair) == 2 else None


def loss_of(model: keras.Model, loss: Any = None) -> Loss:
    """Returns `loss(y, outputs)`, a batch's mean loss as a scalar; `model` stays as it is.

    Args:
        loss: a name, function or `keras.losses.Loss` as `compile` takes it, for several outputs a
            list or dict of them. None: what the model was compiled with, loss weights included.

    Penalties on weights and activations (regularizers, `add_loss`) are no part of it: structures
    are judged by what the model says about the data.

    Raises:
        InputError: `loss` is None and the model is not compiled with one, or Keras knows no such
            loss.
    """
    weights = None
    if loss is None:
        config = getattr(model, "_compile_config", None)
        settings = config.config if config is not None else {}
        loss, weights = settings.get("loss"), settings.get("loss_weights")
    if loss is None:
        raise InputError(
            f"Model '{model.name}' must be compiled with a loss, or `loss` be given, "
            'for example loss="sparse_categorical_crossentropy". Received: loss=None'
        )
    # A model without layers: it adds no penalties, and its trackers are not the user's.
    judge = keras.Model(name="judge")
    judge.output_names = list(getattr(model, "output_names", [])) or None
    for name in filter(lambda part: isinstance(part, str), keras.tree.flatten(loss)):
        call(partial(keras.losses.get, name), "compile with `loss`")
    call(lambda: judge.compile(loss=loss, loss_weights=weights), "compile with `loss`")

    def judged(y: Any, outputs: Any) -> Any:
        return judge.compute_loss(y=y, y_pred=outputs)

    return judged


def evaluate_loss(
    model: keras.Model,
    data: Any,
    loss: Any = None,
    batch_size: int = 64,
    most: int | None = None,
) -> float:
    """Returns the mean loss of the model over the data, at inference; `model` stays as it is.

    `data`, `batch_size`, `most` as in `batches`, `loss` as in `loss_of`. Penalties on weights are
    not in it, so that it can be lower than what `model.evaluate` says.

    Raises:
        InputError: for data that does not fit the model, without labels, or a loss that is not
            finite.

    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    >>> model.set_weights([np.array([[2.0]])])
    >>> evaluate_loss(model, (np.array([[1.0], [2.0]]), np.array([[1.0], [2.0]])), "mse")
    2.5
    """
    return Evaluation(model, loss)(batches(data, batch_size, most))


class Evaluation:
    """The mean loss of a model over batches at inference, compiled once for many calls.

    A call may put other values in the place of weights; the model itself stays as it is.
    """

    def __init__(self, model: keras.Model, loss: Any = None):
        self.model = model
        self._loss = loss_of(model, loss)
        self._step = tf.function(self._evaluate, reduce_retracing=True)

    def __call__(
        self,
        data: Iterable[Batch],
        replaced: Mapping[int, Any] | None = None,
        see: Callable[[Any, Any], None] | None = None,
    ) -> float:
        """Returns the mean loss over (x, y) batches; a loss that is not finite is an `InputError`.

        `replaced` are arrays by `id` of the variable that they stand in for. `see(y, outputs)` is
        called for each batch.
        """
        weights = values(self.model, replaced or {})
        total, rows = 0.0, 0
        for x, y in data:
            inputs_in_order(self.model, x)
            require(y is not None, "data", "must be (x, y): a loss needs labels")
            outputs, loss = call(partial(run, self._step, weights, x, y), "The loss")
            count = len(keras.tree.flatten(x)[0])
            total += count * finite(loss)
            rows += count
            if see:
                see(y, outputs)
        return total / rows

    def _evaluate(self, weights: Any, x: Any, y: Any) -> tuple[Any, Any]:
        outputs = self.model.stateless_call(*weights, x, training=False)[0]
        return outputs, self._loss(y, outputs)


def values(model: keras.Model, replaced: Mapping[int, Any]) -> tuple[list[Any], list[Any]]:
    """Returns the model's trainable and other weights as tensors, for `stateless_call`.

    Unlike a plain call that one leaves the states of RNNs alone. `replaced` are arrays by `id` of
    the variable that they stand in for.
    """

    def value(variable: keras.Variable) -> Any:
        found = replaced.get(id(variable), variable.value)
        return tf.convert_to_tensor(found, dtype=variable.dtype)

    return [*map(value, model.trainable_variables)], [*map(value, model.non_trainable_variables)]


def run(function: Any, *arguments: Any) -> Any:
    """Calls a `tf.function` that is traced again where the last batch has another shape.

    TensorFlow warns of functions that are traced often; these are traced twice for each model, and
    a user may have many models.
    """
    arguments = keras.tree.map_structure(tf.convert_to_tensor, arguments)
    return function.get_concrete_function(*arguments)(*arguments)


def finite(loss: Any) -> float:
    """Returns a loss as a number; `InputError` if it is NaN or infinite."""
    number = float(loss)
    require(np.isfinite(number), "The loss on the data", "must be finite", loss=number)
    return number


def inputs_in_order(model: keras.Model, x: Any) -> list[Any]:
    """Returns one array for each input of the model; `InputError` unless they fit it."""
    specs = keras.tree.flatten(graph.inputs_of(model))
    names = [spec.name for spec in specs]
    if isinstance(x, Mapping) and set(x) == set(names):
        arrays = [x[name] for name in names]
    else:
        arrays = keras.tree.flatten(x)
    owner = f"x of the data for model '{model.name}'"
    rule = f"must be one array for each input ({', '.join(names)})"
    require(len(arrays) == len(specs), owner, rule, arrays=len(arrays))
    for spec, array in zip(specs, arrays, strict=True):
        expected, found = tuple(spec.shape)[1:], tuple(array.shape)[1:]
        fits = len(expected) == len(found) and all(
            size is None or size == other for size, other in zip(expected, found, strict=True)
        )
        owner = f"x of the data for input '{spec.name}'"
        require(fits, owner, f"must have the shape {('n', *expected)}", shape=tuple(array.shape))
    return arrays
