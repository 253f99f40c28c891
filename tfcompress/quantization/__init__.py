"""Integer grids for arrays: which real numbers the codes of a quantized tensor stand for.

    >>> import numpy as np
    >>> from tfcompress import quantization
    >>> kernel = np.array([[1.0, 0.3], [0.2, -2.0]], np.float32)
    >>> grid = quantization.fit(kernel, channel_axes=(1,), ranges="min_max")
    >>> codes = quantization.ROUNDINGS.create("nearest").round(kernel, grid)
    >>> grid.dequantize(codes)
    array([[ 1.        ,  0.2992126 ],
           [ 0.19685039, -2.        ]], dtype=float32)

Three choices make the codes, each a registry of its own: which weights share a scale
(`GRANULARITIES`), what range it covers (`RANGES`), which point a weight goes to (`ROUNDINGS`).
"""

from tfcompress.quantization.affine import dequantize as dequantize
from tfcompress.quantization.affine import kernel_scale as kernel_scale
from tfcompress.quantization.affine import quantize as quantize
from tfcompress.quantization.allocation import allocate as allocate
from tfcompress.quantization.binary import binary as binary
from tfcompress.quantization.binary import ternary as ternary
from tfcompress.quantization.clipping import clipped_grid as clipped_grid
from tfcompress.quantization.granularity import GRANULARITIES as GRANULARITIES
from tfcompress.quantization.granularity import fit as fit
from tfcompress.quantization.grid import ACTIVATIONS as ACTIVATIONS
from tfcompress.quantization.grid import WEIGHTS as WEIGHTS
from tfcompress.quantization.grid import Codes as Codes
from tfcompress.quantization.grid import Grid as Grid
from tfcompress.quantization.layer_inputs import LayerInputs as LayerInputs
from tfcompress.quantization.ranges import RANGES as RANGES
from tfcompress.quantization.rounding import ROUNDINGS as ROUNDINGS
