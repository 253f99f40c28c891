"""The reference that meets XNNPACK's conditions, and the recipe that makes it sparse."""

import pathlib

import keras
import numpy as np
import pytest

from tests.data.folders import write_folder
from tfcompress import recipe, weights
from tfcompress.errors import InputError
from tfcompress.models.references import reference
from tfcompress.pipeline import run_recipe
from tfcompress.pruning import Block
from tfcompress.rules import resolve
from tfcompress.tflite import audit, sparse_inference_report

L = keras.layers
RECIPE = pathlib.Path(__file__).parents[2] / "configs" / "mobilenet_sparse.yaml"


def test_it_is_mobilenet_with_other_padding():
    model = reference("mobilenet_sparse", (224, 224, 3), 1000)
    assert model.count_params() == reference("mobilenet", (224, 224, 3), 1000).count_params()
    half = reference("mobilenet_sparse:0.5", (96, 96, 3), 10)
    assert half.get_layer("pointwise13").filters == 512


def test_the_stem_needs_three_channels():
    with pytest.raises(InputError, match="3 channels"):
        reference("mobilenet_sparse", (32, 32, 1), 10)


def tiny():
    """A MobileNet of two blocks, with the reference's names."""
    inputs = keras.Input((16, 16, 3))
    x = L.Conv2D(8, 3, strides=2, name="stem")(L.ZeroPadding2D(1)(inputs))
    x = L.Conv2D(16, 1, name="pointwise1")(L.DepthwiseConv2D(3, padding="same")(L.ReLU(6.0)(x)))
    x = L.DepthwiseConv2D(3, strides=2)(L.ZeroPadding2D(1)(L.ReLU(6.0)(x)))
    x = L.ReLU(6.0)(L.Conv2D(32, 1, name="pointwise2")(x))
    x = L.Flatten()(L.GlobalAveragePooling2D(keepdims=True)(x))
    return keras.Model(inputs, L.Dense(2, activation="softmax", name="dense")(x))


def test_the_recipe_ends_in_a_file_that_runs_sparse(tmp_path):
    changes = ["data.size=16", "data.batch_size=4", "data.validation=0.25", "data.augment={}"]
    changes += ["stages.0.train.epochs=1", "stages.0.train.warmup_epochs=0"]
    changes += ["stages.1.prune.epochs=2", "check.runs=0", "check.max_accuracy_drop=1.0"]
    result = run_recipe(
        RECIPE,
        tmp_path / "out",
        overrides=changes,
        data=write_folder(tmp_path / "images"),
        model=f"python:{__name__}:tiny",
        say=lambda line: None,
    )
    path = result.output / "model.tflite"
    report = sparse_inference_report(path)
    assert report.eligible, str(report)
    assert 0.75 < report.zeros / report.weights < 0.85
    assert "DENSIFY" in audit(path).operators


def test_the_reference_pruned_as_the_recipe_says_runs_sparse():
    stage = recipe.read(RECIPE).stages[1]
    model = reference("mobilenet_sparse:0.25", (64, 64, 3), 4)
    assert not sparse_inference_report(model).eligible
    chosen = resolve(stage.rules, weights.kernels(model), ["skip"])
    for kernel in weights.kernels(model):
        if "skip" not in chosen[kernel.path]:
            values = np.array(kernel.variable)
            pattern = Block(**stage.pattern["block"])
            keep = pattern.mask(np.abs(values), stage.schedule["polynomial"]["end"])
            kernel.variable.assign(values * keep)
    report = sparse_inference_report(model)
    assert report.eligible, str(report)
