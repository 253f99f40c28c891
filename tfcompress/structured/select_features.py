"""Feature selection: the input columns whose removal costs least leave the model."""

import functools
import itertools
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress import graph, weights
from tfcompress.errors import call, require, unknown
from tfcompress.structured import evaluation
from tfcompress.structured.columns import Flow, flow, remaining, without
from tfcompress.structured.moments import input_tensors, moments

FEATURE_SCORES = ("gradient", "magnitude", "permutation")


def select_features(
    model: keras.Model,
    data: Any,
    keep: float | int = 0.5,
    score: str = "gradient",
    loss: Any = None,
    *,
    inside: bool = False,
    input_name: str | None = None,
    seed: int = 0,
    batches: int | None = 16,
    batch_size: int = 64,
) -> tuple[keras.Model, np.ndarray]:
    """Returns a new model that takes only the input columns that matter most, and which those are.

    `model` stays as it was; the new one is flat (`graph.functional`), has to be compiled and may be
    trained on. It begins with a layer `KeptFeatures` (or `SelectFeatures`) that is saved with it:
    `kept_features(model)` reads the indices back. Give it `x[..., kept]`.

    A column is an index of the last axis of the input: a feature of a table (n, features), or a
    channel of a series or image. The layers that read it (Dense, convolution, RNN, LSTM, GRU) lose
    its weights; the mean of what they read of it in the data goes into their bias, so that removing
    a column that is constant changes nothing, save where a convolution pads with zeros.
    Normalization, BatchNormalization, PReLU, activations, pooling, Flatten and Concatenate may
    stand between.

    Args:
        data: (x, y) and the other forms of `tfcompress.structured.evaluation.batches`.
        keep: a float in (0, 1], the share of the columns that stays (at least one), or an int in
            [1, columns], their number.
        score: what a column is worth;
            "gradient": mean over the samples of |sum of (x - mean) g|, first-order estimate of what
            its removal costs, with g the gradient of the loss (Molchanov et al. 2017);
            "magnitude": the L2 norm of the weights that read it, each times the standard deviation
            of what it reads;
            "permutation": how much the loss grows when its values are shuffled among the samples
            (Breiman 2001, "Random Forests"); one evaluation for each column.
        loss: as `compile` takes it; None: the compiled one. Not used by "magnitude".
        inside: True: the new model takes all columns and selects inside; False: it takes the kept.
        input_name: which input, where there are several.
        seed: of the shuffling.
        batches: at most so many batches of the data are read, and kept in memory; None: all.
        batch_size: rows of a batch where `data` is arrays.

    Returns:
        (model, kept): `kept` int64 (k,), ascending; of columns of equal score the first ones. A
        model that was made by `select_features` may be selected from again: `kept` then still
        counts the columns of the first.

    Raises:
        InputError: `keep` or `score` out of range; a column is read by a layer that cannot lose it,
            or is an output: the line says why; data that does not fit.

        small, kept = tfc.select_features(model, (x_train, y_train), keep=10)
        small.predict(x_test[:, kept])
    """
    if score not in FEATURE_SCORES:
        raise unknown("feature score", score, FEATURE_SCORES)
    flat = graph.functional(model)
    start = _input(flat, input_name)
    count = _count(keep, start.shape[-1])
    route = flow(flat, start)
    read = list(evaluation.batches(data, batch_size, batches))
    tensors = [start, *(reader.tensor for reader in route.readers.values())]
    means, deviations = moments(flat, tensors, read)
    if score == "magnitude":
        scores = _magnitudes(route, deviations, start.shape[-1])
    else:
        judge = evaluation.loss_of(model, loss)
        measure = _Gradient if score == "gradient" else _Permutation
        scores = measure(flat, start, judge)(read, means[0], seed)
    require(np.isfinite(scores).all(), "Scores of select_features", "must be finite")
    kept = np.sort(np.argsort(-scores, kind="stable")[:count])
    fills = dict(zip(route.readers, means[1:], strict=True))
    return _selected(flat, start, route, kept, fills, inside)


def kept_features(model: keras.Model, input_name: str | None = None) -> np.ndarray:
    """Returns the columns that a model made by `select_features` takes: int64 (k,), ascending.

    `model` stays as it is; it may have been saved and loaded. `input_name` says which input, where
    columns of several were selected. Raises `InputError` if there is no such input.

        small = keras.models.load_model("small.keras")
        small.predict(x[:, tfc.kept_features(small)])
    """
    layers = [x for x in model._flatten_layers() if isinstance(x, KeptFeatures | SelectFeatures)]
    found = {layer.input_name: layer for layer in layers}
    if input_name is not None and input_name not in found:
        raise unknown("input with selected columns", input_name, found)
    require(
        len(found) == 1 or input_name is not None,
        f"Model '{model.name}'",
        "must have columns selected by select_features, of one input, or `input_name` say which",
        inputs=sorted(found),
    )
    layer = found[input_name] if input_name is not None else next(iter(found.values()))
    return np.array(layer.indices, np.int64)


class _Indices:
    """What the two layers share: `indices` of the columns that stay, of the `size` that there were
    of the input `input_name`."""

    def __init__(self, indices: Any, size: int, input_name: str, **kwargs: Any):
        super().__init__(**kwargs)
        self.indices = tuple(int(index) for index in indices)
        self.size = int(size)
        self.input_name = input_name

    def get_config(self) -> dict[str, Any]:
        own = {"indices": list(self.indices), "size": self.size, "input_name": self.input_name}
        return super().get_config() | own  # type: ignore[misc]


@keras.saving.register_keras_serializable("tfcompress")
class KeptFeatures(_Indices, keras.layers.Identity):
    """Does nothing: it says which columns of a wider input the model takes. No weights."""


@keras.saving.register_keras_serializable("tfcompress")
class SelectFeatures(_Indices, keras.layers.Layer):
    """Takes the columns `indices` out of the last axis: (..., size) to (..., k). No weights."""

    def call(self, x: Any) -> Any:
        return keras.ops.take(x, np.array(self.indices, np.int32), axis=-1)


def _input(flat: keras.Model, name: str | None) -> Any:
    found = {tensor._keras_history.operation.name: tensor for tensor in flat.inputs}
    if name is not None and name not in found:
        raise unknown("input", name, found)
    require(
        name is not None or len(found) == 1,
        f"Model '{flat.name}'",
        "has several inputs: `input_name` must say which one select_features is for",
        inputs=sorted(found),
    )
    start = found[name] if name is not None else next(iter(found.values()))
    require(
        len(start.shape) >= 2
        and start.shape[-1] is not None
        and keras.backend.is_float_dtype(start.dtype),
        "The input of select_features",
        "must be float, (n, columns) or (n, ..., channels), with a known number of columns",
        shape=tuple(start.shape),
        dtype=start.dtype,
    )
    return start


def _count(keep: Any, size: int) -> int:
    """Returns how many columns stay."""
    whole = isinstance(keep, int) and not isinstance(keep, bool)
    require(
        (whole and 1 <= keep <= size) or (isinstance(keep, float) and 0 < keep <= 1),
        "keep of select_features",
        f"must be a float in (0, 1] or an int in [1, {size}]",
        keep=keep,
    )
    return keep if whole else max(1, round(keep * size))


def _magnitudes(route: Flow, deviations: list[np.ndarray], size: int) -> np.ndarray:
    total = np.zeros(size)
    for reader, deviation in zip(route.readers.values(), deviations[1:], strict=True):
        kernel = reader.layer.get_weights()[0].astype(np.float64)
        # Rows of a Dense or an RNN, the second axis from behind of every kernel.
        squares = (kernel**2).sum(axis=(*range(kernel.ndim - 2), kernel.ndim - 1)) * deviation**2
        known = reader.columns >= 0
        total += np.bincount(reader.columns[known], squares[known], minlength=size)
    return np.sqrt(total)


class _Gradient:
    def __init__(self, flat: keras.Model, start: Any, judge: Any):
        self._flat, self._judge = flat, judge
        self._number = next(i for i, tensor in enumerate(flat.inputs) if tensor is start)
        self._step = tf.function(self._effects, reduce_retracing=True)

    def __call__(self, read: list[evaluation.Batch], mean: np.ndarray, seed: int) -> np.ndarray:
        total, rows = np.zeros(len(mean)), 0
        for x, y in read:
            arrays = input_tensors(self._flat, x)
            require(y is not None, "data", "must be (x, y): a gradient of the loss needs labels")
            step = functools.partial(self._step, arrays, y, tf.cast(mean, arrays[0].dtype))
            loss, effects = call(step, "The loss")
            evaluation.finite(loss)
            total += np.asarray(effects, np.float64)
            rows += len(arrays[0])
        return total / rows

    def _effects(self, arrays: list[Any], y: Any, mean: Any) -> tuple[Any, Any]:
        columns = arrays[self._number]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(columns)
            x = keras.tree.pack_sequence_as(graph.inputs_of(self._flat), arrays)
            now = evaluation.values(self._flat, {})
            loss = self._judge(y, self._flat.stateless_call(*now, x, training=False)[0])
        slopes = tape.gradient(loss, columns, unconnected_gradients="zero")
        # The loss is a mean over the rows; over positions the effects of a column add up.
        rows = tf.cast(tf.shape(columns)[0], columns.dtype)
        effects = (columns - tf.cast(mean, columns.dtype)) * slopes * rows
        effects = tf.reduce_sum(effects, axis=list(range(1, len(columns.shape) - 1)))
        return loss, tf.reduce_sum(tf.abs(effects), axis=0)


class _Permutation:
    def __init__(self, flat: keras.Model, start: Any, judge: Any):
        self._flat, self._judge = flat, judge
        self._number = next(i for i, tensor in enumerate(flat.inputs) if tensor is start)
        self._step = tf.function(self._loss, reduce_retracing=True)

    def __call__(self, read: list[evaluation.Batch], mean: np.ndarray, seed: int) -> np.ndarray:
        batches = [input_tensors(self._flat, x) for x, _ in read]
        columns = np.concatenate([arrays[self._number] for arrays in batches])
        generator = np.random.default_rng(seed)
        start = self._mean_loss(batches, read, columns)
        growth = []
        for index in range(len(mean)):
            shuffled = columns.copy()
            shuffled[..., index] = shuffled[generator.permutation(len(shuffled)), ..., index]
            growth.append(self._mean_loss(batches, read, shuffled) - start)
        return np.array(growth)

    def _mean_loss(self, batches: Any, read: list[evaluation.Batch], columns: np.ndarray) -> float:
        sizes = [len(arrays[self._number]) for arrays in batches]
        ends = list(itertools.accumulate(sizes, initial=0))
        total = 0.0
        for arrays, (_, y), first, last in zip(batches, read, ends, ends[1:], strict=False):
            require(y is not None, "data", "must be (x, y): a loss needs labels")
            given = list(arrays)
            given[self._number] = tf.constant(columns[first:last])
            loss = call(functools.partial(self._step, given, y), "The loss")
            total += evaluation.finite(loss) * (last - first)
        return total / ends[-1]

    def _loss(self, arrays: list[Any], y: Any) -> Any:
        x = keras.tree.pack_sequence_as(graph.inputs_of(self._flat), arrays)
        now = evaluation.values(self._flat, {})
        return self._judge(y, self._flat.stateless_call(*now, x, training=False)[0])


def _selected(
    flat: keras.Model, start: Any, route: Flow, kept: np.ndarray, fills: Any, inside: bool
) -> tuple[keras.Model, np.ndarray]:
    name, size, indices = start._keras_history.operation.name, start.shape[-1], kept
    before = _selected_before(flat, start)
    if before is not None:
        require(
            not inside, f"Model '{flat.name}'", "takes selected columns: `inside` must be False"
        )
        size, indices = before.size, np.array(before.indices)[kept]
    shape = start.shape if inside else (*start.shape[:-1], len(kept))
    sizes = keras.tree.map_structure(
        lambda x: keras.KerasTensor(shape, x.dtype) if x is start else x, graph.inputs_of(flat)
    )
    inputs = graph.new_inputs(flat, sizes)
    whole = keras.tree.flatten(inputs)[[x is start for x in flat.inputs].index(True)]
    names = weights.Names(operation.name for operation in flat.operations if operation != before)
    kind, title = (SelectFeatures, "select") if inside else (KeptFeatures, "kept")
    chosen = kind(indices, size, name, name=names.unique(f"{title}_features"))(whole)
    new_layers: list[tuple[Any, Any]] = []

    def call(node: Any, copy: Any, *args: Any, **kwargs: Any) -> Any:
        operation = node.operation
        args, kwargs = keras.tree.map_structure(
            lambda x: chosen if x is whole else x, (args, kwargs)
        )
        if operation is before:
            return args[0]
        if id(operation) in route.readers:
            columns, fill = route.readers[id(operation)].columns, fills[id(operation)]
        elif id(operation) in route.scales:
            columns, fill = route.scales[id(operation)][1], None
        else:
            return copy(*args, **kwargs)
        layer, values = without(operation, remaining(columns, kept), fill)
        new_layers.append((layer, values))
        return layer(*args, **kwargs)

    small = graph.rebuild(flat, call, inputs)
    for layer, values in new_layers:
        if values is not None:
            layer.set_weights(values)
    return small, indices.astype(np.int64)


def _selected_before(flat: keras.Model, start: Any) -> Any:
    for node in graph.nodes(flat):
        if isinstance(node.operation, KeptFeatures) and node.input_tensors[0] is start:
            return node.operation
    return None
