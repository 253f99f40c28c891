"""Layers that change the forward pass while a model is trained."""

from tfcompress.wrappers.fake_quantize import FakeQuantize as FakeQuantize
from tfcompress.wrappers.prune_activations import KeepLargest as KeepLargest
from tfcompress.wrappers.prune_activations import activation_zeros as activation_zeros
from tfcompress.wrappers.prune_activations import prune_activations as prune_activations
from tfcompress.wrappers.quantize_aware import quantize_aware as quantize_aware
from tfcompress.wrappers.quantize_aware import skipped as skipped
from tfcompress.wrappers.quantize_aware import uncalibrated as uncalibrated
from tfcompress.wrappers.quantized_layer import QuantizedLayer as QuantizedLayer
from tfcompress.wrappers.settings import Settings as Settings
from tfcompress.wrappers.unrounded import is_quantize_aware as is_quantize_aware
from tfcompress.wrappers.unrounded import simulated as simulated
from tfcompress.wrappers.unrounded import unrounded as unrounded
