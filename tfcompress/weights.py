"""A model's kernels: by path, with the axes of their outputs, and as blocks.

>>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="head")])
>>> [(kernel.path, kernel.value().shape, kernel.output_axes) for kernel in kernels(model)]
[('head/kernel', (4, 3), (1,))]
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfcompress.errors import InputError, require

# Weights that multiply inputs; not biases, gammas, moving averages, PReLU's alpha, LoRA's factors.
_KERNEL_NAME = re.compile(r"(.*_)?(kernel|weights?|w)|embeddings")


@dataclasses.dataclass(frozen=True, eq=False)
class Kernel:
    """A weight of a model that multiplies inputs, where it is and what its axes mean.

    `path` names it by the models and layers around it ("encoder/dense/kernel"), `layer_path` is
    the path without the weight. `output_axes` are the axes that count output channels: (1,) for
    Dense, (3,) for Conv2D, (2, 3) for DepthwiseConv2D, (2,) for Conv2DTranspose.
    """

    path: str
    layer_path: str
    layer: keras.layers.Layer
    variable: keras.Variable
    output_axes: tuple[int, ...]

    def value(self) -> np.ndarray:
        """Returns a float32 copy; of a variable mirrored over replicas, the first one's."""
        return np.array(keras.ops.convert_to_numpy(self.variable.value), np.float32)


def kernels(model: keras.Model) -> list[Kernel]:
    """Returns the kernels of any built Keras 3 model, in the order of its layers.

    Paths are made of the names of nested models and layers. They do not change when the model is
    saved and loaded: a layer that a subclass holds without a name of its own goes by its attribute
    (`self.head = Dense(3)` -> "head/kernel"), for Keras' automatic names count on. A wrapper and
    its wrapped layer count once where they have the same name; a second equal path gets "_1".
    A layer that is used in several places is there once, where it comes first.

    Raises `InputError` if `model` is not a Keras 3 model or not built.
    """
    if not isinstance(model, keras.Model):
        raise InputError(f"A model must be a Keras 3 model. Received: {model!r}")
    built = model.built and (not isinstance(model, keras.Sequential) or bool(model.layers))
    require(built, f"Model '{model.name}'", "must be built, for example called once on data")
    found, seen, paths = [], set(), Names()
    for layer, layer_path in _walk(model, "", set()):
        for variable in layer._trainable_variables + layer._non_trainable_variables:
            if id(variable) in seen or not _is_kernel(variable):
                continue
            seen.add(id(variable))
            path = paths.unique(f"{layer_path}/{variable.name}")
            axes = _output_axes(layer, variable)
            found.append(Kernel(path, layer_path, layer, variable, axes))
    return found


def layer_paths(model: keras.Model) -> dict[int, str]:
    """Returns the path of every layer below `model`, nested ones too, by `id` of the layer."""
    return {id(layer): path for layer, path in _walk(model, "", set()) if layer is not model}


def origin_paths(model: keras.Model, origins: Mapping[str, keras.layers.Layer]) -> dict[str, str]:
    """Returns the paths in `model` of what `graph.flatten(model)` says its layers are copies of, by
    the copies' names."""
    paths = layer_paths(model)
    return {name: paths.get(id(layer), name) for name, layer in origins.items()}


class Names:
    """Gives out each name once; a second time with "_1", then "_2". `taken` are given already."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._given: set[str] = set(taken)

    def __contains__(self, name: str) -> bool:
        return name in self._given

    def unique(self, name: str) -> str:
        candidate, number = name, 0
        while candidate in self._given:
            number += 1
            candidate = f"{name}_{number}"
        self._given.add(candidate)
        return candidate


def _walk(layer: Any, path: str, seen: set[int], saved: bool = True) -> Iterator[tuple[Any, str]]:
    """Yields each layer below `layer` and itself once, with its path, parents first.

    `saved` says whether the names of everything down to here are in a saved configuration.
    """
    if id(layer) in seen:
        return
    seen.add(id(layer))
    yield layer, path or layer.name
    wraps = isinstance(layer, keras.layers.Wrapper)
    graph = isinstance(layer, keras.Sequential) or hasattr(layer, "_nodes_by_depth")
    saved = saved and (wraps or graph)
    attributes = {} if graph else _attributes(layer)
    names = Names()
    for child in layer._flatten_layers(include_self=False, recursive=False):
        name = names.unique(child.name if saved else _stable_name(child, attributes))
        same = wraps and path.rsplit("/", 1)[-1] == name
        yield from _walk(child, path if same else f"{path}/{name}" if path else name, seen, saved)


def _attributes(layer: Any) -> dict[int, str]:
    """Returns the attribute that holds each child, alone or in lists and mappings."""
    attributes: dict[int, str] = {}
    for name, value in vars(layer).items():
        if name != "_layers" and not name.startswith("_self_"):  # Keras' own records
            for child in _layers_in(value):
                attributes.setdefault(id(child), name.strip("_"))
    return attributes


def _layers_in(value: Any) -> Iterator[Any]:
    if isinstance(value, keras.layers.Layer):
        yield value
    elif isinstance(value, dict):
        yield from _layers_in(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _layers_in(item)


def _stable_name(child: Any, attributes: dict[int, str]) -> str:
    automatic = _snake_case(type(child).__name__)
    if re.fullmatch(rf"{automatic}(_\d+)?", child.name):
        return attributes.get(id(child), automatic)
    return child.name


def _snake_case(name: str) -> str:
    """Returns the name that Keras gives to layers of a class: Conv2DTranspose, conv2d_transpose."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _is_kernel(variable: Any) -> bool:
    return (
        len(variable.shape) >= 2
        and keras.backend.is_float_dtype(variable.dtype)
        and _KERNEL_NAME.fullmatch(variable.name) is not None
    )


def _output_axes(layer: Any, variable: Any) -> tuple[int, ...]:
    rank = len(variable.shape)
    if variable.name == "depthwise_kernel" or "DepthwiseConv" in type(layer).__name__:
        return (rank - 2, rank - 1)
    if re.fullmatch(r"Conv\dDTranspose", type(layer).__name__):
        return (rank - 2,)
    if isinstance(layer, keras.layers.EinsumDense):
        inputs, kernel = re.fullmatch(r"(.*),(.*)->.*", layer.equation.replace(" ", "")).groups()  # type: ignore[union-attr]
        return tuple(axis for axis, label in enumerate(kernel) if label not in inputs)
    return (rank - 1,)


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Returns the sizes of a kernel seen as a matrix, inputs x outputs.

    The last axis makes the columns, all others the rows. Trailing axes of size 1 of kernels of
    higher rank do not count, so that a depthwise kernel's channels are columns.

    >>> matrix_shape((3, 3, 16, 32)), matrix_shape((3, 3, 16, 1)), matrix_shape((10, 1))
    ((144, 32), (9, 16), (10, 1))
    """
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) < 2:
        return int(np.prod(shape)), 1
    return int(np.prod(shape[:-1])), int(shape[-1])


def to_blocks(array: np.ndarray, block: tuple[int, int] = (1, 1)) -> np.ndarray:
    """Returns the kernel as blocks, float32 of shape (n, d) with d = block[0] * block[1].

    The matrix (`matrix_shape`) is cut into blocks of `block` = (inputs, outputs), row after row.
    Ragged edges are filled by repeating the outermost weight, so that a block's values are all
    weights of the kernel; `real_entries` tells the filling apart. (1, 1) gives a view, no copy.

    >>> to_blocks(np.arange(6.0).reshape(2, 3), block=(1, 2)).tolist()
    [[0.0, 1.0], [2.0, 2.0], [3.0, 4.0], [5.0, 5.0]]
    """
    array = np.asarray(array, np.float32)
    if tuple(block) == (1, 1):
        return array.reshape(-1, 1)
    return _cut(array.reshape(matrix_shape(array.shape)), block, mode="edge")


def from_blocks(blocks: np.ndarray, shape: tuple[int, ...], block: tuple[int, int]) -> np.ndarray:
    """Returns the kernel of `shape` that `to_blocks` cut; the filling at ragged edges is dropped.

    >>> array = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    >>> np.array_equal(from_blocks(to_blocks(array, (2, 2)), (2, 3), (2, 2)), array)
    True
    """
    rows, columns = matrix_shape(tuple(shape))
    high, wide = block
    grid = blocks.reshape(-(-rows // high), -(-columns // wide), high, wide).transpose(0, 2, 1, 3)
    matrix = grid.reshape(grid.shape[0] * high, -1)
    return matrix[:rows, :columns].reshape(shape)


def real_entries(shape: tuple[int, ...], block: tuple[int, int]) -> np.ndarray:
    """Returns which entries of `to_blocks` are weights, not filling: bool of shape (n, d)."""
    return _cut(np.ones(matrix_shape(tuple(shape)), bool), block)


def by_channel(array: np.ndarray, output_axes: Sequence[int]) -> np.ndarray:
    """Returns a kernel's values as (channels, values of each).

    >>> by_channel(np.array([[1, 2, 3], [4, 5, 6]]), (1,)).tolist()
    [[1, 4], [2, 5], [3, 6]]
    """
    channels = int(np.prod([array.shape[axis] for axis in output_axes]))
    return array.transpose(channels_first(array.ndim, output_axes)).reshape(channels, -1)


def channels_first(rank: int, output_axes: Sequence[int]) -> list[int]:
    """Returns the axes of a kernel, those of its channels first."""
    axes = [axis % rank for axis in output_axes]
    return [*axes, *(axis for axis in range(rank) if axis not in axes)]


def block_numbers(shape: tuple[int, ...], block: tuple[int, int]) -> np.ndarray:
    """Returns which weight of the kernel each entry of `to_blocks` is: int32 (n, d), -1: filling.

    >>> block_numbers((2, 3), (1, 2)).tolist()
    [[0, 1], [2, -1], [3, 4], [5, -1]]
    """
    numbers = np.arange(np.prod(shape, dtype=int), dtype=np.int32)
    return _cut(numbers.reshape(matrix_shape(tuple(shape))), block, constant_values=-1)


def _cut(matrix: np.ndarray, block: tuple[int, int], **filling: Any) -> np.ndarray:
    high, wide = block
    rows, columns = matrix.shape
    filled = np.pad(matrix, ((0, -rows % high), (0, -columns % wide)), **filling)
    grid = filled.reshape(filled.shape[0] // high, high, filled.shape[1] // wide, wide)
    return grid.transpose(0, 2, 1, 3).reshape(-1, high * wide)
