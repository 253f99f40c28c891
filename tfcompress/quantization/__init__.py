"""Integer grids for arrays: which real numbers the codes of a quantized tensor stand for."""

from tfcompress.quantization.affine import dequantize as dequantize
from tfcompress.quantization.affine import kernel_scale as kernel_scale
from tfcompress.quantization.affine import quantize as quantize
from tfcompress.quantization.affine import snap as snap
