"""Compress Keras 3 models into small, verified, measured `.tflite` files.

import tfcompress as tfc

model.fit(x, y, callbacks=[tfc.PruneOnSchedule(tfc.schedules.Polynomial(end=0.8)),
                           tfc.ClusterOnSchedule("kmeans", begin_step=2500)])
model = tfc.quantize_aware(model)
flatbuffer = tfc.convert(model, scheme="int8")
print(tfc.audit(flatbuffer))
"""

import os
import sys

from tfcompress.silence import silent_stderr

# TensorFlow's start-up messages are not the user's business; it prints some whatever the level.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
with silent_stderr():
    import keras

from tfcompress import clustering, data, models, packing, pruning, schedules, structured
from tfcompress.callbacks import (
    ClusterOnSchedule,
    FreezeQuantization,
    Preserve,
    PruneOnSchedule,
    RoundIteratively,
)
from tfcompress.clustered import cluster, cluster_features, fisher
from tfcompress.errors import InputError
from tfcompress.packing import pack, unpack
from tfcompress.pipeline import run_recipe
from tfcompress.projection import preserve
from tfcompress.report import compare_clusterings, quantization_report, weights_report
from tfcompress.search import mixed_precision
from tfcompress.structured import (
    channel_groups,
    correct_bias,
    crop_inputs,
    dead_channels,
    drop_layers,
    equalize,
    fold_batch_norm,
    keep_channels,
    kept_features,
    merge_channels,
    pool_head,
    prune_channels,
    remove_dead_channels,
    select_features,
    sensitivity,
    trim,
)
from tfcompress.tflite import (
    audit,
    codebook_flatbuffer,
    compare,
    convert,
    measure_latency,
    sparse_inference_report,
)
from tfcompress.wrappers import prune_activations, quantize_aware

# Keras builds and loads a graph by one Python call for each layer in a row. Quantizers double what
# is in a row: EfficientNetV2L, quantized, has more than the 1,000 calls that Python allows.
sys.setrecursionlimit(max(sys.getrecursionlimit(), 20_000))

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        "tfcompress targets TFLite and needs Keras' TensorFlow backend: set "
        f"KERAS_BACKEND=tensorflow. Received: KERAS_BACKEND={keras.backend.backend()}"
    )

__version__ = "0.1.0"

__all__ = [
    "ClusterOnSchedule",
    "FreezeQuantization",
    "InputError",
    "Preserve",
    "PruneOnSchedule",
    "RoundIteratively",
    "audit",
    "channel_groups",
    "cluster",
    "cluster_features",
    "clustering",
    "codebook_flatbuffer",
    "compare",
    "compare_clusterings",
    "convert",
    "correct_bias",
    "crop_inputs",
    "data",
    "dead_channels",
    "drop_layers",
    "equalize",
    "fisher",
    "fold_batch_norm",
    "keep_channels",
    "kept_features",
    "measure_latency",
    "merge_channels",
    "mixed_precision",
    "models",
    "pack",
    "packing",
    "pool_head",
    "preserve",
    "prune_activations",
    "prune_channels",
    "pruning",
    "quantization_report",
    "quantize_aware",
    "remove_dead_channels",
    "run_recipe",
    "schedules",
    "select_features",
    "sensitivity",
    "sparse_inference_report",
    "structured",
    "trim",
    "unpack",
    "weights_report",
]
