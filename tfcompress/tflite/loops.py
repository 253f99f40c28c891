"""Recurrent layers, in whose loops the TFLite converter quantizes nothing."""

from typing import Any

import keras

from tfcompress.errors import InputError

_LOOPS = {"While", "StatelessWhile"}


def unrolled(operation: Any) -> dict[str, Any]:
    """Returns the change to a recurrent layer's config that unrolls it over its fixed number of
    steps; none for other operations."""
    both = isinstance(operation, keras.layers.Bidirectional)
    if not both and not isinstance(operation, keras.layers.RNN):
        return {}
    lengths = [node.input_tensors[0].shape[1] for node in operation._inbound_nodes]
    config = operation.get_config()
    if None in lengths or not (both or "unroll" in config):
        return {}
    if not both:
        return {"unroll": True}
    parts = {key: config[key] for key in ("layer", "backward_layer") if config.get(key)}
    return {k: p | {"config": p["config"] | {"unroll": True}} for k, p in parts.items()}


def check(model: keras.Model, operations: set[str], scheme: str) -> None:
    """Raises `InputError` if there is a loop among the operations of a model's graph."""
    if _LOOPS & operations:
        raise InputError(  # the converter would end the process with a segmentation fault
            f"Model '{model.name}' must be free of loops for {scheme}: give its recurrent layers "
            "inputs of a fixed number of steps, over which they are unrolled."
        )
