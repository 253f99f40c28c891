"""TensorFlow Model Optimization's way from a trained model to an int8 file, stage by stage.

Importing this module puts the whole process on `tf_keras`, so it is imported in a process of its
own. Its functions are those of `tfcompress_chain`; `fit(model, callbacks)` trains for one stage.
"""

import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"

import tensorflow as tf  # noqa: E402
import tensorflow_model_optimization as tfmot  # noqa: E402
import tf_keras as keras  # noqa: E402
from tensorflow_model_optimization.python.core.clustering.keras.experimental import (  # noqa: E402
    cluster as sparse_clustering,
)
from tensorflow_model_optimization.python.core.quantization.keras.collab_opts import (  # noqa: E402
    cluster_preserve,
)


def prune(model, fit, sparsities, end_step):
    """Prunes each layer to its sparsity along the cubic schedule, new masks every 100 steps."""

    def wrap(layer):
        if layer.name not in sparsities:
            return layer
        schedule = tfmot.sparsity.keras.PolynomialDecay(
            initial_sparsity=0.0,
            final_sparsity=sparsities[layer.name],
            begin_step=0,
            end_step=end_step,
        )
        return tfmot.sparsity.keras.prune_low_magnitude(layer, schedule)

    model = keras.models.clone_model(model, clone_function=wrap)
    fit(model, [tfmot.sparsity.keras.UpdatePruningStep()])
    return tfmot.sparsity.keras.strip_pruning(model)


def cluster(model, fit, clusters, preserve_sparsity=True, per_channel=False):
    """Clusters each kernel, or each channel of a convolution, and trains the centroids."""
    model = sparse_clustering.cluster_weights(
        model,
        number_of_clusters=clusters,
        cluster_centroids_init=tfmot.clustering.keras.CentroidInitialization.KMEANS_PLUS_PLUS,
        preserve_sparsity=preserve_sparsity,
        cluster_per_channel=per_channel,
    )
    fit(model, [])
    return tfmot.clustering.keras.strip_clustering(model)


def quantize(model, fit, samples):
    """Trains with fake quantization that keeps zeros and clusters (tfmot's PCQAT)."""
    del samples  # tfmot learns the ranges while it trains.
    annotated = tfmot.quantization.keras.quantize_annotate_model(model)
    scheme = cluster_preserve.default_8bit_cluster_preserve_quantize_scheme
    model = tfmot.quantization.keras.quantize_apply(
        annotated, scheme.Default8BitClusterPreserveQuantizeScheme(preserve_sparsity=True)
    )
    fit(model, [])
    return cluster_preserve.cluster_utils.strip_clustering_cqat(model)


def convert(model, scheme="int8"):
    """Returns the full-integer int8 file, or the float32 one."""
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if scheme == "int8":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.inference_input_type = tf.int8
        converter.inference_output_type = tf.int8
    return converter.convert()
