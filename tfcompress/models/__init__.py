"""Models from one word: a file, a function, or a built-in reference.

model = tfcompress.models.load("model.keras")
model = tfcompress.models.load("mobilenet:0.25")
"""

import os
from collections.abc import Sequence

import keras
import numpy as np

from tfcompress.errors import InputError, unknown
from tfcompress.models.files import from_file
from tfcompress.models.functions import from_function
from tfcompress.models.references import REFERENCES, reference

__all__ = ["REFERENCES", "check_finite", "load"]


def load(
    spec: str | os.PathLike,
    unsafe: bool = False,
    data_shape: Sequence[int] | None = None,
    classes: int | None = None,
) -> keras.Model:
    """Returns the Keras model that `spec` means, not compiled.

    Args:
        spec: one of
            - a path: `.keras`, `.h5` (also those of Keras 2 that Keras 3 refuses for arguments
              like `groups` of DepthwiseConv2D), or a SavedModel folder, whose serving signature
              becomes one layer that can be exported but not compressed;
            - `python:module:function`: what the function returns, called without arguments;
            - the name of a built-in reference with fresh weights, from a seed that
              `keras.utils.set_random_seed` sets: lenet300, lenet5, digits_cnn, resnet8, dscnn,
              mobilenet, mobilenet_sparse; these two take a width, `mobilenet:0.25`.
        unsafe: load files that carry Python code (Lambda layers, pickles), which executes it.
        data_shape: shape of one sample, without the batch; only references adapt to it.
        classes: number of classes; only references adapt to it.

    Raises:
        InputError: nothing is there, it is corrupt, it carries code, or its weights are not
            finite.
    """
    text = os.fspath(spec)
    if text.startswith("python:"):
        model = from_function(text)
    elif os.path.exists(text):
        model = from_file(text, unsafe)
    elif text.partition(":")[0] in REFERENCES:
        model = reference(text, data_shape, classes)
    elif os.sep in text or os.path.splitext(text)[1]:
        raise InputError(f"Model {text} does not exist.")
    else:
        raise unknown("model", text, REFERENCES)
    check_finite(model)
    return model


def check_finite(model: keras.Model) -> None:
    """Raises `InputError` for what is no Keras model, or names the first weight with NaN or
    infinity."""
    if not isinstance(model, keras.Model):
        raise InputError(f"A model must be a Keras 3 model. Received: {model!r}")
    for variable in model.weights:
        value = keras.ops.convert_to_numpy(variable)
        if value.dtype.kind == "f" and not np.all(np.isfinite(value)):
            raise InputError(
                f"Weights of model '{model.name}' must be finite. Received: NaN or infinity in "
                f"{variable.path}"
            )
