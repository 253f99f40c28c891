"""Which of its grid's points a weight becomes: one file per method.

A method is a frozen dataclass with `round(weights, grid, inputs=None) -> codes`: int32 of the
weights' shape, within the grid's codes. `inputs`, a `LayerInputs`, tells what the weights are
multiplied with; `needs_inputs` says whether the method reads it. `overshoot` says how many codes
past the largest one the largest weight has to fall (see `tfcompress.quantization.grid`).
"""

from tfcompress.registry import Registry

ROUNDINGS: Registry = Registry("rounding", __name__)
