"""Keras 2's `.h5` files whose layers carry arguments that Keras 3 refuses."""

import json
import os
from typing import Any

import h5py

# Arguments that Keras 3 dropped, by layer, with the one value that changes nothing; `...` stands
# for any value: the layer never used it.
_CONVOLUTION = {"groups": 1}
_SEPARABLE = {
    "groups": 1,
    "kernel_initializer": ...,
    "kernel_regularizer": ...,
    "kernel_constraint": ...,
}
_RECURRENT = {"time_major": False}
_DROPPED: dict[str, dict[str, Any]] = {
    "DepthwiseConv1D": _CONVOLUTION,
    "DepthwiseConv2D": _CONVOLUTION,
    "Conv1DTranspose": _CONVOLUTION,
    "Conv2DTranspose": _CONVOLUTION,
    "Conv3DTranspose": _CONVOLUTION,
    "SeparableConv1D": _SEPARABLE,
    "SeparableConv2D": _SEPARABLE,
    "LSTM": _RECURRENT,
    "GRU": _RECURRENT,
    "SimpleRNN": _RECURRENT,
    "RNN": _RECURRENT,
}


def modernised(path: str | os.PathLike) -> None:
    """Edits the model's configuration in the file, so that Keras 3 takes it.

    An argument with another value than the neutral one stays, and Keras will say what it is.
    """
    with h5py.File(path, "r+") as file:
        config = file.attrs["model_config"]
        text = config.decode() if isinstance(config, bytes) else config
        edited = _edit(json.loads(text))
        if edited != json.loads(text):
            del file.attrs["model_config"]
            file.attrs["model_config"] = json.dumps(edited)


def _edit(node: Any) -> Any:
    if isinstance(node, list):
        return [_edit(child) for child in node]
    if not isinstance(node, dict):
        return node
    edited = {key: _edit(child) for key, child in node.items()}
    dropped = _DROPPED.get(str(node.get("class_name")), {})
    if isinstance(edited.get("config"), dict):
        edited["config"] = {
            key: value
            for key, value in edited["config"].items()
            if key not in dropped or (dropped[key] is not ... and value != dropped[key])
        }
    return edited
