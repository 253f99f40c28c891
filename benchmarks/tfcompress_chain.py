"""tfcompress's way from a trained model to an int8 file, stage by stage; see `tfmot_chain`."""

import keras  # noqa: F401

import tfcompress as tfc
from tfcompress import tflite


def prune(model, fit, sparsities, end_step):
    """Prunes each layer to its sparsity along the cubic schedule, new masks every 100 steps."""
    fit(model, [_pruning(sparsities, end_step)])
    return model


def cluster(model, fit, clusters, method="linear", **options):
    """Clusters each kernel, the zeros kept, and trains the centroids."""
    fit(model, [tfc.ClusterOnSchedule(method, clusters=clusters, **options)])
    return model


def quantize(model, fit, samples):
    """Trains with fake quantization; `quantize_aware` keeps zeros and clusters."""
    model = tfc.quantize_aware(model, samples=samples)
    fit(model, [])
    return model


def one_fit(model, fit, samples, sparsities, end_step, clusters, steps):
    """Does all of it in one `fit`; steps: for how long the other way prunes and clusters."""
    model = tfc.quantize_aware(model, samples=samples)
    levels = tfc.clustering.Linear(clusters=clusters)
    callbacks = [
        _pruning(sparsities, end_step),
        tfc.ClusterOnSchedule(levels, begin_step=steps[0]),
        tfc.FreezeQuantization(observers_step=steps[0] + steps[1]),
    ]
    fit(model, callbacks)
    return model


def convert(model, scheme="int8"):
    """Returns the full-integer int8 file, or the float32 one."""
    return tflite.convert(model, scheme)


def _pruning(sparsities, end_step):
    rules = [{"layers": layer, "end": end} for layer, end in sparsities.items()]
    schedule = tfc.schedules.Polynomial(end=max(sparsities.values()), end_step=end_step)
    return tfc.PruneOnSchedule(schedule, rules=rules)
