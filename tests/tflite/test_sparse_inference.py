"""The verdicts are those of LiteRT 2.3 itself, on a CPU without AVX: benchmarks/sparse_kernels.py
runs models like these there and tells by their time whether the sparse kernels ran."""

import json

import keras
import numpy as np
import pytest

from tfcompress import tflite
from tfcompress.errors import InputError
from tfcompress.models.references import reference
from tfcompress.tflite import sparse_inference_report

L = keras.layers
IMAGES = np.random.default_rng(0).normal(size=(4, 24, 24, 3)).astype(np.float32)


def build(
    zeros=0.8,
    stem="valid",
    depthwise="valid",
    activation="relu",
    pool="global",
    head=None,
    branch=None,
    shift=None,
):
    inputs = x = keras.Input((24, 24, 3))
    if shift is not None:
        x = L.Rescaling(2.0, offset=shift, name="rescaling")(x)
    if stem == "valid":
        x = L.ZeroPadding2D(1)(x)
    x = L.Conv2D(8, 3, strides=2, padding=stem, name="stem")(x)
    x = y = L.Conv2D(16, 1, activation="relu", name="first")(x)
    if depthwise == "valid":
        x = L.ZeroPadding2D(1)(x)
    x = L.DepthwiseConv2D(3, strides=2, padding=depthwise, name="depthwise")(x)
    x = (
        L.PReLU(shared_axes=[1, 2], alpha_initializer=keras.initializers.Constant(0.1), name="act")(
            x
        )
        if activation == "prelu"
        else L.Activation(activation, name="act")(x)
    )
    x = L.Conv2D(16, 1, name="second")(x)
    x = L.Add(name="add")([x, L.Conv2D(16, 1, name="third")(x)])
    if pool == "global":
        x = L.GlobalAveragePooling2D(keepdims=True, name="pool")(x)
    else:
        x = L.AveragePooling2D(6, name="pool")(x)
    if head == "convolution":
        x = L.Conv2D(10, 1, name="head")(x)
    outputs = [L.Dense(3, name="dense")(L.Flatten()(x))]
    if branch == "shared":
        outputs.append(L.Dense(3, name="other")(L.Flatten()(L.MaxPooling2D(6)(y))))
    if branch == "leaf":
        y = L.Conv2D(8, 1, name="leaf")(y)
        outputs.append(L.Dense(3, name="other")(L.Flatten()(L.MaxPooling2D(6)(y))))
    model = keras.Model(inputs, outputs)
    generator = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, L.Conv2D) and layer.kernel_size == (1, 1):
            kernel = np.array(layer.kernel)
            kernel[generator.random(kernel.shape) < zeros] = 0.0
            layer.kernel.assign(kernel)
    return model


@pytest.mark.parametrize(
    "changes",
    [{}, {"activation": "hard_swish"}, {"activation": "silu"}, {"shift": -1.0}],
    ids=["plain", "hard_swish", "silu", "rescaled"],
)
def test_models_that_run_sparse(changes):
    report = sparse_inference_report(build(**changes))
    assert report.eligible
    assert report.missed == ()


@pytest.mark.parametrize(
    ("changes", "layer", "condition"),
    [
        ({"zeros": 0.6}, "whole model", "2/3 zeros"),
        ({"stem": "same"}, "stem", "padded by 1"),
        ({"depthwise": "same"}, "depthwise", "padded by 1"),
        ({"activation": "prelu"}, "act", "channel by channel"),
        ({"pool": "average"}, "whole model", "ends in global average pooling"),
        ({"head": "convolution"}, "head", "sparse part alone"),
        ({"branch": "shared"}, "first", "sparse part alone"),
        ({"branch": "leaf"}, "leaf", "sparse part alone"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_a_model_misses(changes, layer, condition):
    report = sparse_inference_report(build(**changes))
    assert not report.eligible
    assert any(row.layer == layer and condition in row.missed for row in report.missed)
    assert all(row.change for row in report.missed)


@pytest.mark.parametrize("changes", [{"head": "convolution"}, {"branch": "leaf"}])
def test_files_that_would_fail_on_arm_are_refused(changes):
    model = build(**changes)
    with pytest.raises(InputError, match="would fail on ARM"):
        tflite.convert(model, "sparse")
    assert tflite.convert(model, "float32")


def test_files_are_judged_as_they_are():
    model = build()
    sparse = tflite.convert(model, "sparse")
    assert sparse_inference_report(sparse).eligible
    dense = sparse_inference_report(tflite.convert(model, "float32"))
    assert [row.missed for row in dense.missed] == ["stores a kernel sparse"]
    integer = sparse_inference_report(tflite.convert(model, "int8", IMAGES))
    assert not integer.eligible
    assert any("float" in row.missed for row in integer.missed)


def test_zeros_are_counted_over_the_1x1_convolutions():
    model = build()
    kernels = [np.array(model.get_layer(n).kernel) for n in ("first", "second", "third")]
    report = sparse_inference_report(model)
    assert report.weights == sum(kernel.size for kernel in kernels)
    assert report.zeros == sum(np.sum(kernel == 0) for kernel in kernels)
    shares = {row.layer: row.zeros for row in report.rows if row.zeros is not None}
    assert shares["second"] == pytest.approx(np.mean(kernels[1] == 0))


def test_sparse_files_are_smaller_and_audited_with_their_zeros():
    model = reference("mobilenet_sparse:0.25", (64, 64, 3), 4)
    for layer in model.layers:
        if layer.name.startswith("pointwise") and isinstance(layer, L.Conv2D):
            kernel = np.array(layer.kernel)
            kernel[..., 1:] = 0.0
            layer.kernel.assign(kernel)
    files = [tflite.convert(model, scheme) for scheme in ("float32", "sparse")]
    assert len(files[1]) < 0.4 * len(files[0])
    dense, sparse = map(tflite.audit, files)
    assert sparse.parameters == dense.parameters
    assert sparse.nonzeros == dense.nonzeros
    assert sparse_inference_report(files[1]).eligible


def test_a_model_without_zeros_is_stored_dense_with_a_warning():
    with pytest.warns(UserWarning, match="stores no kernel sparse"):
        tflite.convert(build(zeros=0.0), "sparse")


def test_keras_mobilenet_never_qualifies_and_the_table_says_why():
    model = keras.applications.MobileNet((64, 64, 3), 0.25, weights=None, classes=4)
    report = sparse_inference_report(model)
    assert not report.eligible
    text = str(report)
    assert "would not run on ARM" in text
    assert all(row.missed in text and row.change in text for row in report.missed)
    assert {"conv1", "conv_dw_2", "conv_preds"} <= {row.layer for row in report.missed}
    assert json.loads(json.dumps(report.to_dict()))["eligible"] is False
