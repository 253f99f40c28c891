"""Activation pruning: of an activation map only the largest values go on."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from tfcompress import graph, rules, weights
from tfcompress.data.samples import to_arrays
from tfcompress.errors import InputError, require

# Activations whose zero says "nothing here", by name without underscores. Gates and probabilities
# (sigmoid, softmax) are not among them.
_MAPS = {
    *("celu", "elu", "gelu", "hardsilu", "hardswish", "hardtanh", "leakyrelu", "mish", "prelu"),
    *("relu", "relu6", "selu", "silu", "softplus", "softsign", "squareplus", "swish", "tanh"),
}
_BATCH = 64


class ZeroShares(NamedTuple):
    """Shares of zeros in [0, 1] in an activation map: as the layer gives it, and as it goes on."""

    before: float
    after: float


def prune_activations(
    model: keras.Model, keep: float = 0.5, rules: Sequence[Mapping[str, Any]] = ()
) -> keras.Model:
    """Returns a new model whose activation maps go on with their largest values only.

    `model` stays as it was. The new model is one flat graph with a `KeepLargest` layer behind each
    chosen activation: of each sample's map the share `keep` with the largest magnitude stays, the
    rest is zero, in training and at inference alike. It has to be compiled and trained to get
    used to that; it is saved and loaded as `.keras`, and its `.tflite` file computes the same. An
    int8 file searches among its codes, where more values tie; `quantize_aware` leaves the search
    float.

    It is the map that gets sparse: fewer bytes where maps are stored or sent compressed, less work
    on hardware that skips zeros. TFLite skips none and has to search the largest on top, so that
    the file becomes slower. `activation_zeros` says what share of zeros results.

    Args:
        model: a built Keras 3 model that `graph.functional` can read.
        keep: share in (0, 1] of each map that stays; of n values round(keep * n), at least one.
        rules: mappings {"layers": REGEX, "keep": SHARE} or {"layers": REGEX, "skip": REASON}; REGEX
            matches a layer's whole path.

    Chosen are the outputs of rectifiers and their kin (`relu`, `gelu`, `silu`, `elu`, `tanh`, ...),
    whether layers, operations or the `activation` of a layer; not gates and probabilities
    (`sigmoid`, `softmax`), not recurrent layers, and not what the model itself puts out.

    Raises:
        InputError: `keep` out of range, an unusable rule, no activation to prune, a map of unknown
            size, a model that is pruned so already.

    Source: Kurtz et al. 2020, "Inducing and Exploiting Activation Sparsity", which prunes by a
    threshold; Ahmad and Scheinkman 2019, "How Can We Be So Dense?", section 3, for the largest k.

        model = tfc.prune_activations(model, keep=0.25)
        model.compile("adam", loss="sparse_categorical_crossentropy")
        model.fit(x_train, y_train, epochs=2)
    """
    _check_keep(keep, "keep of prune_activations")
    flat, origins = graph.flatten(model)
    require(
        not _pruners(flat),
        f"Model '{model.name}'",
        "has pruned activations already: prune the activations of the model before that",
    )
    shares = _shares(flat, model, origins, keep, rules)
    pruners: dict[str, KeepLargest] = {}
    names = weights.Names(operation.name for operation in flat.operations)

    def call(node: Any, copy: Any, *args: Any, **kwargs: Any) -> Any:
        y, name = copy(*args, **kwargs), node.operation.name
        if shares.get(name, 1) == 1:
            return y
        _check_size(node)
        if name not in pruners:
            pruners[name] = KeepLargest(shares[name], name=names.unique(f"{name}_largest"))
        return pruners[name](y)

    return graph.rebuild(flat, call)


def activation_zeros(model: keras.Model, samples: Any) -> dict[str, ZeroShares]:
    """Returns what share of each pruned activation map is zero, by name of its `KeepLargest`.

    `model` stays as it was. `before` are the zeros that the activation itself made, as ReLU does.

    Args:
        model: a model that `prune_activations` made.
        samples: inputs, as the model takes them: an array (n, ...), a list of arrays for several
            inputs, or a `tf.data.Dataset`; at most 1,000 samples are read.

    Raises:
        InputError: no pruned activations; samples that do not fit.

        for name, zeros in tfc.wrappers.activation_zeros(model, x_test).items():
            print(name, zeros.before, zeros.after)
    """
    flat = graph.functional(model)
    nodes = [node for node in graph.nodes(flat) if isinstance(node.operation, KeepLargest)]
    require(nodes, f"Model '{model.name}'", "must have activations that are pruned")
    names = [tensor._keras_history.operation.name for tensor in flat.inputs]
    arrays = to_arrays(samples, flat.inputs, names)
    tensors = [tensor for node in nodes for tensor in (node.input_tensors[0], node.outputs[0])]
    maps = keras.Model(flat.inputs, tensors)
    zeros, sizes = np.zeros(len(tensors)), np.zeros(len(tensors))
    for start in range(0, len(arrays[0]), _BATCH):
        batch = [array[start : start + _BATCH] for array in arrays]
        for index, values in enumerate(maps(batch, training=False)):
            zeros[index] += np.count_nonzero(keras.ops.convert_to_numpy(values) == 0)
            sizes[index] += math.prod(values.shape)
    by_name: dict[str, list[int]] = {}
    for index, node in enumerate(nodes):  # a shared layer prunes several maps
        by_name.setdefault(node.operation.name, []).append(2 * index)
    return {
        name: ZeroShares(
            *(
                float(sum(zeros[i + k] for i in at) / sum(sizes[i + k] for i in at))
                for k in range(2)
            )
        )
        for name, at in by_name.items()
    }


@keras.saving.register_keras_serializable("tfcompress")
class KeepLargest(keras.layers.Layer):
    """Passes the values of each sample with the largest magnitude on, zero in place of the others.

        y = x where |x| >= t, else 0        t: the k-th largest |x| of the sample

    with k = round(keep * n), at least 1, of the sample's n values. Values as large as t all stay,
    so that with ties more than k do. The gradient reaches the values that stay. No weights.

    Args:
        keep: share in (0, 1] that stays.

    Call arguments: a tensor (batch, ...) of known size. Returns one of the same shape and dtype.

    >>> KeepLargest(0.5)(np.array([[1.0, -4.0, 3.0, 2.0]])).numpy().tolist()
    [[0.0, -4.0, 3.0, 0.0]]
    """

    def __init__(self, keep: float, **kwargs: Any):
        super().__init__(**kwargs)
        _check_keep(keep, "keep of KeepLargest")
        self.keep = float(keep)
        self.supports_masking = True

    def call(self, x: Any) -> Any:
        size = math.prod(x.shape[1:])
        count = max(1, round(self.keep * size))
        magnitudes = keras.ops.abs(x)
        largest = keras.ops.top_k(keras.ops.reshape(magnitudes, (-1, size)), count)[0]
        threshold = keras.ops.reshape(largest[:, -1:], (-1, *[1] * (len(x.shape) - 1)))
        return keras.ops.where(magnitudes >= threshold, x, keras.ops.zeros_like(x))

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"keep": self.keep}


def _shares(
    flat: keras.Model,
    model: keras.Model,
    origins: Mapping[str, Any],
    keep: float,
    given: Sequence[Mapping[str, Any]],
) -> dict[str, float]:
    """Returns the share to keep, by name in the flat model, of every map that is to be pruned."""
    paths, readers = weights.origin_paths(model, origins), graph.consumers(flat)
    found: dict[str, rules.Place] = {}
    for node in graph.nodes(flat):
        name = node.operation.name
        if _makes_map(node) and None not in readers[id(node.outputs[0])]:
            path = paths.get(name, name)
            found[name] = rules.Place(path, path)
    if not found:
        raise InputError(
            f"Model '{model.name}' must have an activation, such as relu, between its inputs and "
            "its outputs for prune_activations."
        )
    resolved = rules.resolve(given, found.values(), ["keep"], kind="activation")
    for path, rule in resolved.items():
        _check_keep(rule.get("keep", keep), f"keep of the rule for {path}")
    return {
        name: resolved[place.path].get("keep", keep)
        for name, place in found.items()
        if "skip" not in resolved[place.path]
    }


def _makes_map(node: Any) -> bool:
    operation = node.operation
    if len(node.outputs) != 1 or isinstance(operation, keras.layers.RNN):
        return False
    activation = getattr(operation, "activation", None)
    kinds = [type(operation).__name__]
    if activation is not None:
        kinds = [getattr(activation, "__name__", type(activation).__name__)]
    return any(kind.replace("_", "").lower() in _MAPS for kind in kinds)


def _check_size(node: Any) -> None:
    shape = node.outputs[0].shape
    require(
        None not in shape[1:],
        f"Activation map of '{node.operation.name}'",
        "must have a known size for prune_activations: give the model a keras.Input of fixed shape",
        shape=tuple(shape),
    )


def _check_keep(keep: Any, owner: str) -> None:
    is_number = isinstance(keep, int | float) and not isinstance(keep, bool)
    require(is_number and 0 < keep <= 1, owner, "must be in (0, 1]", keep=keep)


def _pruners(model: keras.Model) -> list[Any]:
    return [layer for layer in model.layers if isinstance(layer, KeepLargest)]
