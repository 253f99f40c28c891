"""tfcompress's way from a trained model to an int8 file, stage by stage; see `tfmot_chain`."""

import keras  # noqa: F401

import tfcompress as tfc
from tfcompress import tflite


def prune(model, fit, sparsities, end_step):
    """Prunes each layer to its sparsity along the cubic schedule, new masks every 100 steps."""
    rules = [{"layers": layer, "end": end} for layer, end in sparsities.items()]
    schedule = tfc.schedules.Polynomial(end=max(sparsities.values()), end_step=end_step)
    fit(model, [tfc.PruneOnSchedule(schedule, rules=rules)])
    return model


def cluster(model, fit, clusters):
    """Clusters each kernel into levels, the zeros kept, and trains the centroids."""
    fit(model, [tfc.ClusterOnSchedule(tfc.clustering.Linear(clusters=clusters))])
    return model


def quantize(model, fit, samples):
    """Trains with fake quantization; `quantize_aware` keeps zeros and clusters."""
    model = tfc.quantize_aware(model, samples=samples)
    fit(model, [])
    return model


def convert(model):
    """Returns the full-integer int8 file."""
    return tflite.convert(model, scheme="int8")
