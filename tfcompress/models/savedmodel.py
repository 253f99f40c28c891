"""SavedModel folders, for export only."""

import pathlib
import re

import keras
import tensorflow as tf

from tfcompress.errors import InputError

_ENDPOINT = "serving_default"


def from_saved_model(path: pathlib.Path) -> keras.Model:
    """Returns a model around the folder's signature `serving_default`, for export only.

    A SavedModel holds a TensorFlow graph, not Keras layers: it is run as one
    opaque layer. It converts to every scheme, but has no kernels to prune or cluster.
    """
    if not (path / "saved_model.pb").exists():
        raise InputError(f"Model {path} is a folder without saved_model.pb: no SavedModel.")
    try:
        signatures = tf.saved_model.load(str(path)).signatures
    except Exception as error:  # TensorFlow's errors have no common class
        line = " ".join(str(error).split())[:300]
        raise InputError(f"Model {path} cannot be loaded: {line}") from error
    if _ENDPOINT not in signatures:
        raise InputError(
            f"Model {path} must have the signature '{_ENDPOINT}'. Received: "
            f"{', '.join(signatures) or 'none'}"
        )
    specs = signatures[_ENDPOINT].structured_input_signature[1]
    if any(spec.shape.rank is None for spec in specs.values()):
        raise InputError(f"Model {path} must have inputs of known rank.")
    inputs = {
        name: keras.Input(tuple(spec.shape[1:]), dtype=spec.dtype.name, name=name)
        for name, spec in specs.items()
    }
    outputs = _Signature(str(path), name=re.sub(r"\W", "_", path.name))(inputs)
    flat = next(iter(inputs.values())) if len(inputs) == 1 else inputs
    return keras.Model(flat, outputs, name=re.sub(r"\W", "_", path.name))


class _Signature(keras.layers.Layer):
    """Runs the signature by its argument names; one output comes without its name."""

    def __init__(self, path: str, **kwargs):
        super().__init__(**kwargs)
        self._path = path
        self._folder = tf.saved_model.load(path)  # keeps the signature's variables alive

    def call(self, inputs):
        outputs = self._folder.signatures[_ENDPOINT](**inputs)
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs

    def get_config(self):
        return {**super().get_config(), "path": self._path}
