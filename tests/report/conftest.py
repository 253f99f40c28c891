"""A record as the pipeline writes it, with the awkward bits: None, markup, a failed check."""

import copy

import numpy as np
import pytest

from tfcompress import measure

PRUNED = np.random.default_rng(0).choice(np.float32([0, 0, 0, 0, -0.5, 0.25]), size=(60, 10))


def measured(*arrays):
    found = [measure.measure_kernel(f"dense{n}/kernel", array) for n, array in enumerate(arrays)]
    return measure.ModelMeasures(parameters=700, kernels=tuple(found)).to_dict()


RECORD = {
    "name": "digits <b>[bold]</b>",
    "model": "digits_cnn",
    "data": "digits",
    "seed": 17,
    "stages": [
        {
            "name": "train",
            "index": 0,
            "arguments": {"epochs": 2},
            "epochs": 2,
            "history": {"accuracy": [0.8, 0.9], "val_accuracy": [0.7, 0.9], "step": [40, 80]},
            "seconds": 3.25,
            "skipped": {},
            "accuracy": 0.9,
            "measures": measured(np.linspace(-1, 1, 600, dtype=np.float32).reshape(60, 10)),
        },
        {
            "name": "prune",
            "index": 1,
            "arguments": {"score": "magnitude", "rules": [{"layers": "<script>alert(1)</script>"}]},
            "epochs": 2,
            "history": {"accuracy": [0.9, 0.95], "sparsity": [0.4, 0.8], "step": [40, 80]},
            "seconds": 4.5,
            "skipped": {"depthwise/kernel": "too few weights & <i>no</i> spare"},
            "accuracy": None,
            "measures": measured(PRUNED),
        },
        {"name": "export", "index": 2, "arguments": {}, "epochs": 0, "history": {}, "seconds": 1.0},
    ],
    "before": {
        "accuracy": 0.98,
        "parameters": 610,
        "nonzeros": 600,
        "sparsity": 0.0,
        "distinct_values": 600,
        "size_bytes": 4000,
        "deflated_bytes": 3600,
        "macs": 600,
        "median_latency_ms": 0.02,
    },
    "after": {
        "accuracy": 0.975,
        "parameters": 610,
        "nonzeros": 200,
        "sparsity": 2 / 3,
        "distinct_values": 2,
        "size_bytes": 1600,
        "deflated_bytes": 500,
        "macs": 600,
        "median_latency_ms": None,
    },
    "compression": 4.88,
    "audit": {
        "size_bytes": 1600,
        "deflated_bytes": 500,
        "inputs": [],
        "outputs": [],
        "operators": {"FULLY_CONNECTED": 1, "SOFTMAX": 1},
        "tensors": {"INT8": 4, "INT32": 1},
        "float_operators": [],
        "delegated_operators": ["FULLY_CONNECTED", "FULLY_CONNECTED"],
        "full_integer": True,
        "macs": 600,
        "weights": [
            {
                "name": "0 FULLY_CONNECTED",
                "shape": [10, 60],
                "dtype": "INT8",
                "size": 600,
                "nonzeros": 200,
                "distinct": 3,
                "distinct_per_channel": 2,
                "bytes": 600,
            },
            {"name": "$x^$", "shape": [10], "dtype": "INT32", "size": 10, "bytes": 40},
        ],
    },
    "latency": [
        {
            "path": "/home/user/baseline.tflite",
            "median_ms": 0.02,
            "p10_ms": 0.019,
            "p90_ms": 0.03,
            "ratio_to_first": 1.0,
            "ratio_p10": 0.9,
            "ratio_p90": 1.125,
            "threads": 1,
            "runs": 200,
            "xnnpack": True,
            "operators": [{"name": "FULLY_CONNECTED", "median_ms": 0.015, "delegated": True}],
            "arena_bytes": 2048,
        },
        {"path": "model.tflite", "median_ms": None, "operators": []},
    ],
    "comparison": {"max_abs_error": 0.0125, "agreement": 0.996},
    "checks": [
        {"name": "accuracy drop", "limit": 0.01, "value": 0.005, "passed": True},
        {"name": "size", "limit": 1000, "value": 1600, "passed": False},
    ],
    "passed": False,
}


@pytest.fixture
def record():
    return copy.deepcopy(RECORD)


@pytest.fixture
def weights():
    before = np.random.default_rng(1).normal(size=PRUNED.shape).astype(np.float32)
    return {"dense0/kernel": before}, {"dense0/kernel": PRUNED}
