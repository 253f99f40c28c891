"""Average pooling over a whole map as what it is, a mean: it gets integers of its own in a file.

TFLite's AVERAGE_POOL_2D puts out codes of the grid that it reads. Means of a sparse map lie far
below its maxima, and are rounded to few codes there; a MEAN has a grid for its own values.
"""

import math
from typing import Any

import keras

from tfcompress import graph

_LAYERS = keras.layers
_MEANS = {
    _LAYERS.AveragePooling1D: _LAYERS.GlobalAveragePooling1D,
    _LAYERS.AveragePooling2D: _LAYERS.GlobalAveragePooling2D,
    _LAYERS.AveragePooling3D: _LAYERS.GlobalAveragePooling3D,
}


def as_mean(node: Any) -> keras.layers.Layer | None:
    """Returns the global pooling, of the same name, that computes what the call of an average
    pooling does; None of other calls."""
    layer = node.operation
    if type(layer) not in _MEANS or layer.data_format == "channels_first":
        return None
    shape = node.input_tensors[0].shape
    whole = (
        None not in shape[1:]
        and math.prod(node.outputs[0].shape[1:-1]) == 1
        and all(pool >= size for pool, size in zip(layer.pool_size, shape[1:-1], strict=True))
    )
    # A mask would change a mean over steps, and nothing in the pooling.
    if not whole or getattr(node.input_tensors[0], "_keras_mask", None) is not None:
        return None
    return _MEANS[type(layer)](keepdims=True, name=layer.name, dtype=layer.dtype_policy)


def with_means(model: keras.Model) -> keras.Model:
    """Returns a flat functional model with means where it pools over whole maps; itself if it has
    no such pooling."""
    means = {id(node): mean for node in graph.nodes(model) if (mean := as_mean(node)) is not None}
    if not means:
        return model
    return graph.rebuild(
        model, lambda node, copy, *args, **kwargs: means.get(id(node), copy)(*args, **kwargs)
    )
