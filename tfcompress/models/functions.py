"""Models that a user's own function builds."""

import importlib
import os
import sys

import keras

from tfcompress.errors import InputError, call


def from_function(spec: str) -> keras.Model:
    """Returns the model that `python:module:function` builds; the current folder is searched."""
    parts = spec.split(":")
    if len(parts) != 3 or not all(parts):
        raise InputError(f"A model's function must be python:module:function. Received: {spec}")
    _, module_name, function_name = parts
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except ImportError as error:
        raise InputError(f"Model {spec} cannot be imported: {error}.") from None
    except AttributeError:
        raise InputError(f"Model {spec}: no '{function_name}' in {module_name}.") from None
    model = call(function, f"Model {spec}")
    if not isinstance(model, keras.Model):
        raise InputError(f"Model {spec} must return a keras.Model. Received: {type(model)}")
    return model
