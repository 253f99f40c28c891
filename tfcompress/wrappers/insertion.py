"""Where the kernels and the quantizers of a quantization-aware model go."""

from collections.abc import Collection, Mapping
from typing import Any

import keras

from tfcompress import graph, weights
from tfcompress.errors import require
from tfcompress.wrappers.fake_quantize import FakeQuantize, OnGrid
from tfcompress.wrappers.kernel_layers import KERNELS, kind
from tfcompress.wrappers.operators import CausalMask, InverseRoot
from tfcompress.wrappers.quantized_layer import KeptFloat, QuantizedLayer
from tfcompress.wrappers.settings import Settings
from tfcompress.wrappers.support import Way, fixed_bounds, function_name, way

# Of 16 bits, in the steps of TFLite's int16 kernels for softmax, sigmoid and tanh.
_WIDE_BOUNDS = (-32767 / 32768, 32767 / 32768)
_NEAREST = ("nearest", None)
_PART = "_depthwise", "_activation"  # what `canonical` names the parts of a layer


class Insertion:
    """Knows, for each tensor of the new graph, the grid that it is on.

    A tensor is *open* when an integer layer put it out but its rounding comes further down: TFLite
    merges a ReLU into the layer before it, takes the maximum before or after rounding with the same
    result, and has the parts of a concatenation on one grid. Equal ReLUs of one tensor become one,
    as TFLite makes them.
    """

    def __init__(
        self,
        model: keras.Model,
        one_range: Collection[str],
        default: Settings,
        settings: Mapping[str, tuple[Settings, str | None]],
        quantize: str,
        penalty: float,
        norms: Mapping[str, Any],
    ):
        """`norms`: BatchNorms that are to train, by the name of the layer before them."""
        self.model = model
        self.methods: dict[str, Any] = {}  # name of a quantizer -> what its range starts from
        self.clipped: list[tuple[QuantizedLayer, Settings]] = []
        self.heard: set[str] = set()  # names of what a quantizer stands behind
        self.unfolded: list[tuple[QuantizedLayer, Any]] = []
        self._norms = norms
        self._readers, self._calls = graph.consumers(model), graph.calls(model)
        self._shared: dict[str, Any] = dict.fromkeys(one_range)  # name of a layer -> its quantizer
        self._default = default
        self._settings = settings
        self._quantize = quantize
        self._penalty = penalty
        self._bits: dict[int, int] = {}  # id of a rounded tensor -> its bits
        self._owners: dict[int, Settings] = {}  # id of an open tensor -> whose rounding it awaits
        self._rounded: dict[int, Any] = {}  # id of a tensor -> the tensor rounded
        self._grids: dict[int, Any] = {}  # id of a rounded tensor -> its grid
        # id of a tensor -> how its kernel rounds, and what it makes the tensor of
        self._kernels: dict[int, tuple[str | list[str], Any]] = {}
        # id of a tensor -> the kinds of ReLU that read it, each with its output
        self._relus: dict[int, list[tuple[Any, Any]]] = {}
        self._open: set[int] = set()
        self._nonnegative: set[int] = set()
        self._wrappers: dict[int, Any] = {}
        self._names = weights.Names(operation.name for operation in model.operations)

    def call(self, node: Any, copy: Any, *args: Any, **kwargs: Any) -> Any:
        how = self._way(node)
        if how is Way.FLOAT:
            return self._kept_float(node.operation, copy)(*args, **kwargs)
        if self._quantize == "weights":
            wraps = how is Way.KERNEL
            return (
                self._wrapper(node.operation, copy)(args[0])[0] if wraps else copy(*args, **kwargs)
            )
        if how is Way.RELU:
            kind_of_relu, known = self._kind_of_relu(node), self._relus.setdefault(id(args[0]), [])
            for other, y in known:
                if other == kind_of_relu:
                    return y
            y = self._in_integers(node, how, copy, *args, **kwargs)
            known.append((kind_of_relu, y))
            return y
        return self._in_integers(node, how, copy, *args, **kwargs)

    def _in_integers(self, node: Any, how: Way, copy: Any, *args: Any, **kwargs: Any) -> Any:
        if how is Way.IDENTITY:
            if None in self._readers[id(node.outputs[0])]:
                args, kwargs = self._map(args, kwargs, node, leave_open=True)
            return self._passed_on(args[0], copy(*args, **kwargs))
        if how in (Way.RELU, Way.CONCATENATE, Way.SELECT) and self._all_open(args):
            pass
        elif how is Way.CONCATENATE:
            args, kwargs = self._map(args, kwargs, node, leave_open=True)
        else:
            args, kwargs = self._map(args, kwargs, node)
        if how is Way.KERNEL and self._quantize == "both":
            y, sums = self._wrapper(node.operation, copy)(args[0], self._grids[id(args[0])])
            self._kernels[id(y)] = "sums", sums
        elif how is Way.ROOT:
            name = self._names.unique(f"{node.operation.name}_root")
            y = InverseRoot(name=name)(args[0], self._grids[id(args[0])])
            self._kernels[id(y)] = "roots", self._grids[id(args[0])]
        else:
            y = copy(*args, **kwargs)
        if how is Way.PRODUCT:
            self._kernels[id(y)] = "products", [self._grids[id(x)] for x in args[:2]]
        self._note_kernel(y, args, node.operation)
        return self._output(node, how, args, y)

    def _output(self, node: Any, how: Way, args: Any, y: Any) -> Any:
        """Returns the output on its grid, or open."""
        x = args[0]
        if how is Way.FIXED:
            is_output = None in self._readers[id(node.outputs[0])]
            wide = self._tensor_bits(node, self._own(node.operation)) > 8
            bounds = _WIDE_BOUNDS if wide else fixed_bounds(node.operation)
            return self._round(y, node, bounds=bounds, only_inference=is_output)
        grid = self._grids.get(id(x)) if isinstance(x, keras.KerasTensor) else None
        moves = how in (Way.MOVE, Way.SELECT) and grid is not None
        if how is Way.AVERAGE or (moves and self._is_concatenated(node)):
            y = OnGrid(name=self._names.unique(f"{node.operation.name}_grid"))(y, grid)
        if how is Way.CONCATENATE and self._one_quantizer(args):
            grid, how = self._grids[id(keras.tree.flatten(args)[-1])], Way.MOVE
        if how in (Way.AVERAGE, Way.MOVE) or (how is Way.SELECT and grid is not None):
            bits = self._bits.get(id(keras.tree.flatten(args)[-1]), 8)
            for part in keras.tree.flatten(y):
                self._grids[id(part)], self._bits[id(part)] = grid, bits
            return y
        if how is Way.KERNEL:
            self._owners[id(y)] = self._own(node.operation)
        elif how in (Way.RELU, Way.SELECT) and id(x) in self._owners:
            self._owners[id(y)] = self._owners[id(x)]
        keeps = how in (Way.RELU, Way.SELECT) or isinstance(node.operation, CausalMask)
        # A pooled sum is no sum of the two tensors that were added.
        if keeps and id(x) in self._kernels and (x.shape == y.shape or not self._is_sum(x)):
            self._kernels[id(y)] = self._kernels[id(x)]
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
            if None in readers or not (len(readers) == 1 or self._one_relu(readers)):
                return False
            below = self._way(readers[0])
            if below is not Way.IDENTITY:
                break
            tensor = readers[0].outputs[0]
        if below is Way.RELU:
            return takes_relu
        if self._own(node.operation) != self._default:
            return False  # it has a grid that a rule asks for, not that of its neighbours
        return below in (Way.CONCATENATE, Way.SELECT) and how is not Way.CONCATENATE

    def _one_relu(self, readers: list[Any]) -> bool:
        if any(self._way(reader) is not Way.RELU for reader in readers):
            return False
        kinds = [self._kind_of_relu(reader) for reader in readers]
        return kinds.count(kinds[0]) == len(kinds)

    def _kind_of_relu(self, node: Any) -> tuple[Any, ...]:
        """Returns what ReLUs have in common that round one tensor to the same."""
        operation = node.operation
        own = self._own(operation)
        name = function_name(operation)
        return name, getattr(operation, "high", None), own, self._tensor_bits(node, own)

    def _round(self, y: Any, node: Any, **options: Any) -> Any:
        own = self._settings.get(node.operation.name, (None, None))[0]
        self.heard.add(node.operation.name)
        own = own or self._owners.get(id(y)) or self._own(node.operation)
        bits = self._tensor_bits(node, own)
        name = f"{node.operation.name}_range"
        if "bounds" in options:
            bits = 16 if bits > 8 else 8
        options["rounding"], parts = self._kernels.get(id(y), _NEAREST)
        shared = node.operation.name
        if shared not in self._shared:
            return self._rounded_by(self._quantizer(name, own, bits, **options), y, parts)
        if self._shared[shared] is None:
            self._shared[shared] = self._quantizer(name, own, bits, **options)
        return self._rounded_by(self._shared[shared], y, parts)

    def _quantizer(self, name: str, own: Settings, bits: int, **options: Any) -> FakeQuantize:
        name = self._names.unique(name)
        if "bounds" not in options:
            learn = {"learn": own.learn, "penalty": self._penalty if own.learn == "pact" else 0.0}
            options |= {"momentum": own.momentum} | learn
            self.methods[name] = own.ranges or "min_max"
        return FakeQuantize(name=name, bits=bits, **options)

    def _note_kernel(self, y: Any, args: Any, operation: Any) -> None:
        """Keeps what tensors a sum, a product, a mean, a curve or a concatenation is made of."""
        name = type(operation).__name__
        tensors = [x for x in keras.tree.flatten(args) if isinstance(x, keras.KerasTensor)]
        if name == "Concatenate" and len(tensors) > 1:
            made = [self._rescaled(x) or self._kernels.get(id(x), _NEAREST) for x in tensors]
            parts = [[x, made_of] for x, (_, made_of) in zip(tensors, made, strict=True)]
            self._kernels[id(y)] = [str(word) for word, _ in made], parts
        elif not all(id(x) in self._grids for x in tensors):
            return
        elif name in ("Add", "Subtract") and len(tensors) == 2:
            self._kernels[id(y)] = name.lower(), [(x, self._grids[id(x)]) for x in tensors]
        elif name == "Multiply" and len(tensors) == 2:
            self._kernels[id(y)] = "multiply", [self._grids[id(x)] for x in tensors]
        elif (function := function_name(operation)) == "hard_silu":
            self._kernels[id(y)] = "hard_swish", [tensors[0], self._grids[id(tensors[0])]]
        elif function in ("sigmoid", "tanh"):
            self._kernels[id(y)] = function, tensors[0]
        elif name == "Mean" or name.startswith("GlobalAveragePooling"):
            self._kernels[id(y)] = "means", [tensors[0], self._grids[id(tensors[0])]]

    def _rescaled(self, x: Any) -> Any:
        """Returns how a tensor in int8 comes to another grid; None for one that is not."""
        if id(x) not in self._grids:
            return None
        return _NEAREST if self._bits.get(id(x), 8) > 8 else ("rescaled", self._grids[id(x)])

    def _is_concatenated(self, node: Any) -> bool:
        """Returns whether the output goes into a concatenation, and elsewhere too."""
        readers = self._readers[id(node.outputs[0])] if len(node.outputs) == 1 else []
        ways = [None if reader is None else self._way(reader) for reader in readers]
        return len(ways) > 1 and Way.CONCATENATE in ways

    def _is_sum(self, x: Any) -> bool:
        return self._kernels[id(x)][0] in ("add", "subtract")

    def _rounded_by(self, quantizer: FakeQuantize, y: Any, parts: Any = None) -> Any:
        rounded, grid = quantizer(y, parts)
        self._grids[id(rounded)] = grid
        self._bits[id(rounded)] = quantizer.bits
        return rounded

    def _tensor_bits(self, node: Any, own: Settings) -> int:
        """Returns the bits of a node's output; the model's have 8 at least, save by a rule."""
        is_output = None in self._readers[id(node.outputs[0])]
        plain = own == self._default
        return max(own.tensor_bits, 8) if is_output and plain else own.tensor_bits

    def _on_grid(self, tensor: Any, reader: Any) -> Any:
        """Returns a tensor on its grid: a model's input or a float layer's output is rounded.

        A tensor in int16 that an int8 operator reads is rounded once more.
        """
        wanted = self._own(reader.operation).tensor_bits
        if id(tensor) in self._grids and not self._bits.get(id(tensor), 8) > 8 >= wanted:
            return tensor
        if id(tensor) not in self._rounded:
            producer = tensor._keras_history.operation
            own = self._default
            bits = max(own.tensor_bits, 8)
            if id(tensor) in self._grids:
                bits = 8
            quantizer = self._quantizer(f"{producer.name}_range", own, bits)
            rounded = self._rounded_by(quantizer, tensor)
            # The tensor is kept alive with its entry, so that its id stays its own.
            self._rounded[id(tensor)] = (tensor, rounded)
        return self._rounded[id(tensor)][1]

    def _map(self, args: Any, kwargs: Any, node: Any, leave_open: bool = False) -> Any:
        def prepared(x):
            if not isinstance(x, keras.KerasTensor) or (leave_open and id(x) in self._open):
                return x
            if not keras.backend.is_float_dtype(x.dtype):
                return x  # indices
            if self._moves(node) and id(x) in self._grids:
                return x
            return self._on_grid(x, node)

        return keras.tree.map_structure(prepared, (args, kwargs))

    def _moves(self, node: Any) -> bool:
        return self._way(node) in (Way.MOVE, Way.AVERAGE, Way.SELECT)

    def _all_open(self, args: Any) -> bool:
        return all(id(x) in self._open for x in keras.tree.flatten(args))

    def _one_quantizer(self, args: Any) -> bool:
        """Returns whether one quantizer put all of the tensors on one grid."""
        grids = [self._grids.get(id(x)) for x in keras.tree.flatten(args)]
        sources = {None if g is None else id(g._keras_history.operation) for g in grids}
        return len(grids) > 1 and len(sources) == 1 and None not in sources

    def _passed_on(self, x: Any, y: Any) -> Any:
        mappings: list[dict[int, Any]] = [self._grids, self._kernels, self._bits, self._owners]
        for known in mappings:
            if id(x) in known:
                known[id(y)] = known[id(x)]
        for group in (self._open, self._nonnegative):
            if id(x) in group:
                group.add(id(y))
        return y

    def _way(self, node: Any) -> Way:
        return Way.FLOAT if self._reason(node.operation) else way(node)

    def _reason(self, operation: Any) -> str | None:
        return self._settings.get(operation.name, (None, None))[1]

    def _own(self, operation: Any) -> Settings:
        """Returns the settings of the layer that the operation is, or was made a part of."""
        names = [operation.name, *(operation.name.removesuffix(part) for part in _PART)]
        return next((self._settings[n][0] for n in names if n in self._settings), self._default)

    def _kept_float(self, operation: Any, copy: Any) -> Any:
        reason = self._reason(operation)
        if reason is None:
            return copy
        if id(operation) not in self._wrappers:
            self._wrappers[id(operation)] = KeptFloat(copy, reason)
        return self._wrappers[id(operation)]

    def _wrapper(self, operation: Any, copy: Any) -> Any:
        if id(operation) not in self._wrappers:
            own = self._own(operation)
            # The converter gives a kernel that several operators read one scale per channel.
            shared = self._calls[id(operation)] > 1
            dense = kind(operation) is keras.layers.Dense
            default = "per_tensor" if dense and not shared else "per_channel"
            granularity = own.granularity or default
            require(
                granularity == "per_channel" or not shared,
                f"Layer '{operation.name}', which is called more than once,",
                "must have the granularity per_channel",
                granularity=granularity,
            )
            layer = QuantizedLayer(copy, granularity == "per_channel")
            # A slope per channel, as PReLU has it, is no kernel: it keeps 8 bits.
            base = kind(operation)
            if base is not None and KERNELS[base][1]:
                norm = self._norms.get(operation.name) if layer.per_channel else None
                layer = QuantizedLayer(
                    copy,
                    layer.per_channel,
                    own.kernel_bits,
                    own.weights,
                    own.kernel_clip,
                    norm and graph.copy_operation(norm),
                )
                self.unfolded += [(layer, norm)] if norm else []
                self.clipped += [(layer, own)] if layer.clip else []
            self._wrappers[id(operation)] = layer
        return self._wrappers[id(operation)]


def _activation(operation: Any) -> str | None:
    return getattr(getattr(operation, "activation", None), "__name__", None)
