"""Where the positions of a cropped image's feature maps were in the maps of the whole image."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import keras
import numpy as np

from tfcompress import graph
from tfcompress.errors import InputError, call, require

_LAYERS = keras.layers
# Layers that look through a window, which strides over the map.
_WINDOWS = (
    *(_LAYERS.Conv2D, _LAYERS.DepthwiseConv2D, _LAYERS.SeparableConv2D),
    *(_LAYERS.MaxPooling2D, _LAYERS.AveragePooling2D),
)
_GROWING = (_LAYERS.Conv2DTranspose, _LAYERS.UpSampling2D)
_GLOBAL = (_LAYERS.GlobalAveragePooling2D, _LAYERS.GlobalMaxPooling2D)
# Operations whose output at a position depends on that position alone, by the name of the class.
_POINTWISE = {
    *("Activation", "ReLU", "LeakyReLU", "ELU", "Softmax", "Dense", "Rescaling", "Add", "Subtract"),
    *("Multiply", "Average", "Maximum", "Minimum", "Divide", "TrueDivide", "Relu", "Relu6", "Cast"),
    *("Sigmoid", "Tanh", "Silu", "Gelu", "Elu", "HardSigmoid", "HardSilu", "HardTanh", "Negative"),
    *("Absolute", "Square", "Sqrt", "Exp", "Log", "Clip", "GroupNormalization"),
}
# Layers that do nothing at inference but move or recolour images while training.
_AUGMENTATION = {
    *("RandomFlip", "RandomTranslation", "RandomRotation", "RandomZoom", "RandomContrast"),
    *("RandomBrightness", "RandomSaturation", "RandomHue", "RandomGrayscale", "RandomShear"),
}
_PADDING = (_LAYERS.ZeroPadding2D, _LAYERS.Cropping2D)
# Layers with a weight for each value of a row, sliced with it.
_PER_VALUE = (_LAYERS.BatchNormalization, _LAYERS.LayerNormalization, _LAYERS.PReLU)


@dataclasses.dataclass(frozen=True)
class Grid:
    """A feature map: its position (i, j) is (i + top, j + left) of the whole image's map."""

    top: Fraction
    left: Fraction


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """A flattened map: its value k is value `kept[k]` of the whole image's, int64 (n,)."""

    kept: np.ndarray


Place = Grid | Rows | None  # None: the image's positions are no part of it


class Positions:
    """Rebuilds a flat model call by call on a cropped image, following the positions.

    A Dense behind flattened maps loses the rows of the positions that are gone, and takes the mean
    of what it read there into its bias; `readers` are its inputs in the old graph, by `id` of it.
    """

    def __init__(self) -> None:
        self._places: dict[int, tuple[Any, Place]] = {}  # with the tensor, so that its id stays
        self._layers: dict[int, tuple[Any, Any, np.ndarray]] = {}
        self.readers: dict[int, Any] = {}

    def place(self, tensor: Any, place: Place) -> None:
        self._places[id(tensor)] = tensor, place

    def of(self, tensor: Any) -> Place:
        return self._places.get(id(tensor), (None, None))[1]

    def call(self, node: Any, copy: Any, *args: Any, **kwargs: Any) -> Any:
        """Returns the outputs of the node for the tensors of the new graph in `args`, `kwargs`."""
        new = [x for x in keras.tree.flatten((args, kwargs)) if isinstance(x, keras.KerasTensor)]
        places = [self.of(x) for x in new]
        known = [place for place in places if place is not None]
        if not known:
            return copy(*args, **kwargs)
        operation = node.operation
        if any(isinstance(place, Rows) for place in known):
            place, is_sliced = _rows_behind(node, places)
        else:
            place, is_sliced = _behind(node, places, new), False
        if is_sliced:
            copy = self._sliced(operation, next(x.kept for x in known if isinstance(x, Rows)))
            if type(operation) is _LAYERS.Dense:
                self.readers[id(operation)] = node.input_tensors[0]
        outputs = call(lambda: copy(*args, **kwargs), f"{_title(operation)} on the cropped image")
        self.place(outputs, place)
        return outputs

    def load_weights(self, means: Mapping[int, np.ndarray]) -> None:
        """Gives the new layers the old weights at the positions that remain; `means` float64 (n,)
        of the tensors in `readers`, under the same keys."""
        for old, new, kept in self._layers.values():
            values = old.get_weights()
            if id(old) not in means:
                new.set_weights([value[kept] for value in values])
                continue
            gone = np.setdiff1d(np.arange(len(values[0])), kept)
            total = means[id(old)][gone] @ values[0][gone].astype(np.float64)
            bias = (total + values[1] if old.use_bias else total).astype(values[0].dtype)
            new.set_weights([values[0][kept], bias, *values[2:]])

    def _sliced(self, operation: Any, kept: np.ndarray) -> Any:
        if id(operation) not in self._layers:
            biased = {"use_bias": True} if type(operation) is _LAYERS.Dense else {}
            new = graph.copy_operation(operation, **biased)
            self._layers[id(operation)] = operation, new, kept
        _, new, before = self._layers[id(operation)]
        if not np.array_equal(before, kept):
            raise _refusal(operation, "it is called on maps with different positions")
        return new


def total_stride(flat: keras.Model, image: Any) -> tuple[int, int]:
    """Returns by how many pixels, down and across, the positions of the coarsest map lie apart."""
    strides = {id(image): (Fraction(1), Fraction(1))}
    coarsest = strides[id(image)]
    for node in graph.nodes(flat):
        given = [strides[id(x)] for x in node.input_tensors if id(x) in strides]
        if not given or len(node.outputs[0].shape) != 4 or type(node.operation) in _GLOBAL:
            continue
        down, across = (max(found) for found in zip(*given, strict=True))
        factors = _strides(node.operation)
        strides[id(node.outputs[0])] = here = down * factors[0], across * factors[1]
        coarsest = max(coarsest[0], here[0]), max(coarsest[1], here[1])
    return math.ceil(coarsest[0]), math.ceil(coarsest[1])


def _strides(operation: Any) -> tuple[Fraction, Fraction]:
    if type(operation) in _WINDOWS:
        down, across = operation.strides
        return Fraction(down), Fraction(across)
    if type(operation) in _GROWING:
        down, across = getattr(operation, "size", None) or operation.strides
        return Fraction(1, down), Fraction(1, across)
    return Fraction(1), Fraction(1)


def _behind(node: Any, places: Sequence[Place], new: Sequence[Any]) -> Place:
    """Returns the place of what a node makes of maps."""
    operation, name = node.operation, type(node.operation).__name__
    grid = _common(operation, places, new)
    if getattr(operation, "data_format", None) == "channels_first":
        raise _refusal(operation, "it takes channels_first images")
    if not type(operation).__module__.startswith("keras."):
        raise _refusal(operation, "it is no layer of Keras")
    if graph.is_identity(operation) or name in _AUGMENTATION or type(operation) in _PADDING:
        return grid
    if type(operation) in _GLOBAL:
        return None
    if name in ("Mean", "Max") and sorted(_axes(operation, 4)) == [1, 2]:
        return None
    if type(operation) in (_LAYERS.Flatten, _LAYERS.Reshape) and len(node.outputs[0].shape) == 2:
        return _flattened(operation, grid, node.input_tensors[0].shape, new[0].shape)
    if type(operation) in _WINDOWS:
        return _strided(operation, grid, node.input_tensors[0].shape, new[0].shape)
    if type(operation) in _GROWING:
        down, across = _strides(operation)
        return Grid(grid.top / down, grid.left / across)
    if name in _POINTWISE:
        return grid
    if name in ("BatchNormalization", "LayerNormalization", "Normalization", "Concatenate"):
        if _axes(operation, 4) == [3]:
            return grid
        raise _refusal(operation, f"its axis is {operation.axis}, not the channels'")
    if name == "PReLU":
        if {1, 2} <= set(operation.shared_axes or ()):
            return grid
        raise _refusal(operation, "it has weights for each position (shared_axes is not [1, 2])")
    raise _refusal(operation, "it is not known what it does with positions")


def _rows_behind(node: Any, places: Sequence[Place]) -> tuple[Place, bool]:
    """Returns the place of what a node makes of flattened maps, and whether its weights are cut."""
    operation, rows = node.operation, places[0]
    if len(places) > 1 or not isinstance(rows, Rows):
        raise _refusal(operation, "flattened maps meet other tensors there")
    if type(operation) is _LAYERS.Dense:
        return None, True
    if type(operation) in _PER_VALUE:
        return rows, True
    if graph.is_identity(operation) or type(operation).__name__ in _POINTWISE:
        return rows, False
    raise _refusal(operation, "it is not known what it does with flattened maps")


def _common(operation: Any, places: Sequence[Place], new: Sequence[Any]) -> Grid:
    """Returns the one place of all maps that meet; a map of one position goes with any."""
    grids = {place for place in places if isinstance(place, Grid)}
    alone = [
        x
        for x, place in zip(new, places, strict=True)
        if place is None and math.prod(x.shape[1:-1] if len(x.shape) == 4 else ()) > 1
    ]
    if len(grids) > 1:
        shown = ", ".join(f"({float(g.top):g}, {float(g.left):g})" for g in grids)
        raise _refusal(operation, f"maps with offsets {shown} meet there; take a larger `step`")
    if alone:
        raise _refusal(operation, "maps meet there that do not all come from the image")
    return grids.pop()


def _strided(operation: Any, grid: Grid, old: Sequence[int], new: Sequence[int]) -> Grid:
    window = getattr(operation, "kernel_size", None) or operation.pool_size
    dilation = getattr(operation, "dilation_rate", (1, 1))
    places = []
    for axis, offset in enumerate((grid.top, grid.left)):
        stride, reach = operation.strides[axis], (window[axis] - 1) * dilation[axis] + 1
        pads = [
            _padding(size, reach, stride) if operation.padding == "same" else 0
            for size in (old[axis + 1], new[axis + 1])
        ]
        # Window j of the new map starts where window j + place of the old one does.
        places.append((offset + pads[0] - pads[1]) / stride)
    return Grid(*places)


def _padding(size: int, reach: int, stride: int) -> int:
    """Returns how many lines "same" puts before the first."""
    return max((math.ceil(size / stride) - 1) * stride + reach - size, 0) // 2


def _flattened(operation: Any, grid: Grid, old: Sequence[int], new: Sequence[int]) -> Rows:
    if grid.top.denominator > 1 or grid.left.denominator > 1:
        raise _refusal(
            operation,
            f"the crop moves its map by ({grid.top}, {grid.left}) positions, which must be whole "
            "numbers; take a larger `step`",
        )
    numbers = np.arange(math.prod(old[1:])).reshape(tuple(old[1:]))
    top, left = int(grid.top), int(grid.left)
    kept = numbers[top : top + new[1], left : left + new[2]]
    require(
        top >= 0 and left >= 0 and kept.shape == tuple(new[1:]),
        f"Positions in front of {_title(operation)}",
        "must have been in the map of the whole image",
        old=tuple(old[1:]),
        new=tuple(new[1:]),
        offset=(top, left),
    )
    return Rows(kept.reshape(-1))


def _axes(operation: Any, rank: int) -> list[int]:
    axis = operation.axis
    axes = axis if isinstance(axis, list | tuple) else [] if axis is None else [axis]
    return [int(a) % rank for a in axes]


def _title(operation: Any) -> str:
    return f"{type(operation).__name__} '{operation.name}'"


def _refusal(operation: Any, reason: str) -> InputError:
    return InputError(
        f"Positions of the image cannot be followed through {_title(operation)}: {reason}."
    )
