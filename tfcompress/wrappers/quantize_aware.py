"""Quantization-aware training: a model that computes in floats what its int8 file will compute."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfcompress import graph, projection, rules, weights
from tfcompress.data.samples import to_arrays
from tfcompress.errors import require, unknown
from tfcompress.wrappers.canonical import canonical
from tfcompress.wrappers.fake_quantize import FakeQuantize, OnGrid
from tfcompress.wrappers.operators import CausalMask, InverseRoot
from tfcompress.wrappers.quantized_layer import KeptFloat, QuantizedLayer, kind
from tfcompress.wrappers.support import Way, fixed_bounds, reason_for_float, way

_GRANULARITIES = ("per_channel", "per_tensor")
_CALIBRATION_BATCH = 32


def quantize_aware(
    model: keras.Model,
    scheme: str = "int8",
    samples: Any = None,
    rules: Sequence[Mapping[str, Any]] = (),
) -> keras.Model:
    """Returns a new model that trains with the rounding of its int8 file; `model` stays as it was.

    The new model is one flat graph: nested models are inlined, BatchNorm is folded into its
    neighbours, kernels and biases are rounded inside `QuantizedLayer`, activations by
    `FakeQuantize` wherever the file holds a quantized tensor. Gradients pass straight through. It
    has to be compiled, trains with plain `fit`, keeps the zeros and the shared values of its
    kernels while it does, is saved and loaded as `.keras`, and `convert` needs no samples for it.

    Train it with a tenth of the float model's learning rate or less: its BatchNorm is gone.

    A layer that TFLite cannot compute in integers stays float; `tfc.wrappers.skipped(model)` lists
    them with the reason.

    Args:
        model: a built Keras 3 model that `graph.functional` can read.
        scheme: "int8".
        samples: the inputs from which the activations' ranges start, an array (n, ...), a list of
            arrays for several inputs, or a `tf.data.Dataset`. Without them the first training
            batch gives the start. Ranges then follow the batches by a moving average.
        rules: mappings {"layers": REGEX, "skip": REASON} or {"layers": REGEX, "granularity":
            "per_channel" or "per_tensor"}. Without a rule, a Dense kernel has one scale, so that
            16 shared values stay 16 codes, and a convolution one per output channel.

    Raises:
        InputError: unknown scheme, rule or granularity; a rule that matches nothing; samples that
            do not fit; a model that is not built, holds NaN, or cannot be read as a graph.

    (Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference")

        model = tfc.quantize_aware(model, samples=x_train[:200])
        model.compile(keras.optimizers.Adam(1e-4), loss="sparse_categorical_crossentropy")
        model.fit(x_train, y_train, epochs=2)
        flatbuffer = tfc.convert(model, scheme="int8")
    """
    if scheme != "int8":
        raise unknown("scheme of quantize_aware", scheme, ["int8"])
    settings = _settings(model, rules)
    _check_weights(model)
    require(
        not any(isinstance(layer, FakeQuantize) for layer in model._flatten_layers()),
        f"Model '{model.name}'",
        "is quantization-aware already: make the float model so, or train this one on",
    )
    flat, origins = graph.flatten(model)
    by_name = _by_name(origins, settings)
    skips = {name: rule["skip"] for name, rule in by_name.items() if "skip" in rule}
    quantized = _insert(*canonical(flat, skips), by_name)
    if samples is not None:
        calibrate(quantized, samples)
    projection.preserve(quantized)
    return quantized


def skipped(model: keras.Model) -> dict[str, str]:
    """Returns, by name, the layers and operations of a quantized model left float, and why.

    >>> model = keras.Sequential([keras.Input((8, 3)), keras.layers.Masking(name="mask")])
    >>> skipped(quantize_aware(model))
    {'mask': 'masks that come with the data are not simulated'}
    """
    reasons = {
        node.operation.name: reason_for_float(node)
        for node in graph.nodes(model)
        if not isinstance(node.operation, FakeQuantize | OnGrid)
    }
    return {name: reason for name, reason in reasons.items() if reason is not None}


def calibrate(model: keras.Model, samples: Any) -> None:
    """Starts the ranges of a quantized model, in place, at the extremes that the samples reach."""
    names = [tensor._keras_history.operation.name for tensor in model.inputs]
    arrays = to_arrays(samples, model.inputs, names)
    quantizers = [layer for layer in model.layers if hasattr(layer, "observing")]
    for quantizer in quantizers:
        quantizer.observing = True
    try:
        for start in range(0, len(arrays[0]), _CALIBRATION_BATCH):
            batch = [array[start : start + _CALIBRATION_BATCH] for array in arrays]
            model(keras.tree.pack_sequence_as(model._inputs_struct, batch), training=False)
    finally:
        for quantizer in quantizers:
            quantizer.observing = False


def _settings(model: keras.Model, given: Sequence[Mapping[str, Any]]) -> dict[int, dict[str, Any]]:
    """Returns the rules that hold, by `id` of the layer."""
    kernels = weights.kernels(model)
    resolved = rules.resolve(given, kernels, ["granularity"])
    for rule in resolved.values():
        granularity = rule.get("granularity", _GRANULARITIES[0])
        if granularity not in _GRANULARITIES:
            raise unknown("granularity", granularity, _GRANULARITIES)
    return {id(kernel.layer): resolved[kernel.path] for kernel in kernels if resolved[kernel.path]}


def _by_name(origins: Mapping[str, Any], settings: Mapping[int, Any]) -> dict[str, dict[str, Any]]:
    """Returns the rules by name of the flat model's layers; one with layers inside takes theirs."""
    found: dict[str, dict[str, Any]] = {}
    for name, layer in origins.items():
        for inner in layer._flatten_layers():
            found.setdefault(name, {}).update(settings.get(id(inner), {}))
    return {name: rule for name, rule in found.items() if rule}


def _check_weights(model: keras.Model) -> None:
    for variable in model.weights:
        value = keras.ops.convert_to_numpy(variable)
        require(
            value.dtype.kind != "f" or np.isfinite(value).all(),
            f"Weights of model '{model.name}'",
            "must be finite",
            weight=variable.path,
        )


def _insert(
    model: keras.Model, one_range: Collection[str], settings: Mapping[str, Mapping[str, Any]]
) -> keras.Model:
    """Returns the canonical model with kernels wrapped and quantizers between the layers."""
    insertion = _Insertion(model, one_range, settings)
    return graph.rebuild(model, insertion.call)


class _Insertion:
    """Knows, for each tensor of the new graph, the grid that it is on.

    A tensor is *open* when an integer layer put it out but its rounding comes further down: TFLite
    merges a ReLU into the layer before it, takes the maximum before or after rounding with the same
    result, and has the parts of a concatenation on one grid.
    """

    def __init__(
        self,
        model: keras.Model,
        one_range: Collection[str],
        settings: Mapping[str, Mapping[str, Any]],
    ):
        self._readers, self._calls = graph.consumers(model), graph.calls(model)
        self._shared: dict[str, Any] = dict.fromkeys(one_range)  # name of a layer -> its quantizer
        self._settings = settings
        self._rounded: dict[int, Any] = {}  # id of a tensor -> the tensor rounded
        self._grids: dict[int, Any] = {}  # id of a rounded tensor -> its grid
        self._sums: dict[int, Any] = {}  # id of a tensor -> the steps of its integer sums
        self._open: set[int] = set()
        self._nonnegative: set[int] = set()
        self._wrappers: dict[int, Any] = {}
        self._names = weights.Names(operation.name for operation in model.operations)

    def call(self, node: Any, copy: Any, *args: Any, **kwargs: Any) -> Any:
        how = self._way(node)
        if how is Way.FLOAT:
            return self._kept_float(node.operation, copy)(*args, **kwargs)
        if how is Way.IDENTITY:
            if None in self._readers[id(node.outputs[0])]:
                args, kwargs = self._map(args, kwargs, leave_open=True)
            return self._passed_on(args[0], copy(*args, **kwargs))
        if how in (Way.RELU, Way.CONCATENATE, Way.SELECT) and self._all_open(args):
            pass
        elif how is Way.CONCATENATE:
            args, kwargs = self._map(args, kwargs, leave_open=True)
        else:
            args, kwargs = self._map(args, kwargs)
        if how is Way.KERNEL:
            y, sums = self._wrapper(node.operation, copy)(args[0], self._grids[id(args[0])])
            self._sums[id(y)] = sums
        elif how is Way.ROOT:
            name = self._names.unique(f"{node.operation.name}_root")
            y = InverseRoot(name=name)(args[0], self._grids[id(args[0])])
        else:
            y = copy(*args, **kwargs)
        if how is Way.PRODUCT:
            self._sums[id(y)] = [self._grids[id(x)] for x in args[:2]]
        return self._output(node, how, args, y)

    def _output(self, node: Any, how: Way, args: Any, y: Any) -> Any:
        """Returns the output on its grid, or open."""
        x = args[0]
        if how is Way.FIXED:
            is_output = None in self._readers[id(node.outputs[0])]
            bounds = fixed_bounds(node.operation)
            return self._round(y, node, bounds=bounds, only_inference=is_output)
        grid = self._grids.get(id(x)) if isinstance(x, keras.KerasTensor) else None
        if how is Way.AVERAGE:
            y = OnGrid(name=self._names.unique(f"{node.operation.name}_grid"))(y, grid)
        if how is Way.CONCATENATE and self._one_quantizer(args):
            grid, how = self._grids[id(keras.tree.flatten(args)[-1])], Way.MOVE
        if how in (Way.AVERAGE, Way.MOVE) or (how is Way.SELECT and grid is not None):
            self._grids.update((id(part), grid) for part in keras.tree.flatten(y))
            return y
        keeps = how in (Way.RELU, Way.SELECT) or isinstance(node.operation, CausalMask)
        if keeps and id(x) in self._sums:
            self._sums[id(y)] = self._sums[id(x)]
        is_relu = how is Way.RELU or _activation(node.operation) in ("relu", "relu6")
        if is_relu or (how is Way.SELECT and id(x) in self._nonnegative):
            self._nonnegative.add(id(y))
        if self._stays_open(node, how):
            self._open.add(id(y))
            return y
        return self._round(y, node, nonnegative=id(y) in self._nonnegative)

    def _stays_open(self, node: Any, how: Way) -> bool:
        takes_relu = how in (Way.KERNEL, Way.SELECT) or type(node.operation).__name__ in (
            "Add",
            "Subtract",
            "Multiply",
        )
        takes_relu = takes_relu and _activation(node.operation) in (None, "linear")
        tensor = node.outputs[0]
        while True:
            readers = self._readers[id(tensor)]
            if len(readers) != 1 or readers[0] is None:
                return False
            below = self._way(readers[0])
            if below is not Way.IDENTITY:
                break
            tensor = readers[0].outputs[0]
        if below is Way.RELU:
            return takes_relu
        return below in (Way.CONCATENATE, Way.SELECT) and how is not Way.CONCATENATE

    def _round(self, y: Any, node: Any, **options: Any) -> Any:
        quantizer = self._shared.get(node.operation.name)
        if quantizer is None:
            name = self._names.unique(f"{node.operation.name}_range")
            quantizer = FakeQuantize(name=name, **options)
        if node.operation.name in self._shared:
            self._shared[node.operation.name] = quantizer
        rounded, grid = quantizer(y, self._sums.get(id(y)))
        self._grids[id(rounded)] = grid
        return rounded

    def _on_grid(self, tensor: Any) -> Any:
        """Returns a tensor on its grid: a model's input or a float layer's output is rounded."""
        if id(tensor) in self._grids:
            return tensor
        if id(tensor) not in self._rounded:
            producer = tensor._keras_history.operation
            rounded, grid = FakeQuantize(name=self._names.unique(f"{producer.name}_range"))(tensor)
            # The tensor is kept alive with its entry, so that its id stays its own.
            self._rounded[id(tensor)] = (tensor, rounded)
            self._grids[id(rounded)] = grid
        return self._rounded[id(tensor)][1]

    def _map(self, args: Any, kwargs: Any, leave_open: bool = False) -> Any:
        def prepared(x):
            if not isinstance(x, keras.KerasTensor) or (leave_open and id(x) in self._open):
                return x
            if not keras.backend.is_float_dtype(x.dtype):
                return x  # indices
            return self._on_grid(x)

        return keras.tree.map_structure(prepared, (args, kwargs))

    def _all_open(self, args: Any) -> bool:
        return all(id(x) in self._open for x in keras.tree.flatten(args))

    def _one_quantizer(self, args: Any) -> bool:
        """Returns whether one quantizer put all of the tensors on one grid."""
        grids = [self._grids.get(id(x)) for x in keras.tree.flatten(args)]
        sources = {None if g is None else id(g._keras_history.operation) for g in grids}
        return len(grids) > 1 and len(sources) == 1 and None not in sources

    def _passed_on(self, x: Any, y: Any) -> Any:
        for known in (self._grids, self._sums):
            if id(x) in known:
                known[id(y)] = known[id(x)]
        for group in (self._open, self._nonnegative):
            if id(x) in group:
                group.add(id(y))
        return y

    def _way(self, node: Any) -> Way:
        return Way.FLOAT if "skip" in self._setting(node.operation) else way(node)

    def _setting(self, operation: Any) -> Mapping[str, Any]:
        return self._settings.get(operation.name, {})

    def _kept_float(self, operation: Any, copy: Any) -> Any:
        reason = self._setting(operation).get("skip")
        if reason is None:
            return copy
        if id(operation) not in self._wrappers:
            self._wrappers[id(operation)] = KeptFloat(copy, reason)
        return self._wrappers[id(operation)]

    def _wrapper(self, operation: Any, copy: Any) -> Any:
        if id(operation) not in self._wrappers:
            # The converter gives a kernel that several operators read one scale per channel.
            shared = self._calls[id(operation)] > 1
            dense = kind(operation) is keras.layers.Dense
            default = "per_tensor" if dense and not shared else "per_channel"
            granularity = self._setting(operation).get("granularity", default)
            require(
                granularity == "per_channel" or not shared,
                f"Layer '{operation.name}', which is called more than once,",
                "must have the granularity per_channel",
                granularity=granularity,
            )
            self._wrappers[id(operation)] = QuantizedLayer(copy, granularity == "per_channel")
        return self._wrappers[id(operation)]


def _activation(operation: Any) -> str | None:
    return getattr(getattr(operation, "activation", None), "__name__", None)
