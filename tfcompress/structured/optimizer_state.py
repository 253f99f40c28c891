"""The optimizer of a smaller model: the slices of the larger one's state."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfcompress.errors import require


def slice_optimizer(
    model: keras.Model,
    small: keras.Model,
    variables: Sequence[tuple[keras.Variable, keras.Variable]],
    slices: Mapping[tuple[int, int], np.ndarray],
) -> None:
    """Compiles `small` as `model` is compiled, and gives it the slices of its optimizer's state.

    `variables` are pairs of old and new weights; `slices` what is kept of the old ones, by their
    `id` and axis. Raises `InputError` if `model` is not compiled.
    """
    require(model.compiled, "optimizer of the smaller model", "needs a model that is compiled")
    small.compile_from_config(model.get_compile_config())
    source, target = model.optimizer, small.optimizer
    if not source.built:
        return
    old_of = {id(new): old for old, new in variables}
    references = _references(target, small.trainable_variables)
    for old_state, new_state, reference in zip(
        source.variables, target.variables, references, strict=True
    ):
        value = keras.ops.convert_to_numpy(old_state)
        if reference is not None:
            key = id(old_of[id(reference)])
            for axis in range(value.ndim):
                indices = slices.get((key, axis))
                # Factored momenta have lost an axis: only what matches the weight's can be sliced.
                if indices is not None and value.shape[axis] != new_state.shape[axis]:
                    value = np.take(value, indices, axis)
        new_state.assign(value)


def _references(optimizer: Any, weights: Sequence[keras.Variable]) -> list[keras.Variable | None]:
    """Returns for each of the optimizer's variables the weight that it belongs to, if any."""
    found: dict[int, keras.Variable] = {}
    # A twin tells: it makes its variables in the same order, under our eyes.
    twin = type(optimizer).from_config(optimizer.get_config())
    add = twin.add_variable_from_reference

    def recording(reference_variable, *args, **kwargs):
        variable = add(reference_variable, *args, **kwargs)
        found[id(variable)] = reference_variable
        return variable

    twin.add_variable_from_reference = recording
    twin.build(weights)
    return [found.get(id(variable)) for variable in twin.variables]
