"""The report on a quantized file: every scheme, planted errors, files without names."""

import json
import math
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcompress import analyze, models, tflite, wrappers
from tfcompress.errors import InputError
from tfcompress.report import quantization_report
from tfcompress.tflite import flatbuffer as fb
from tfcompress.tflite.interpreter import start
from tfcompress.tflite.steps import steps

layers = keras.layers
IMAGES = np.random.default_rng(0).normal(size=(32, 12, 12, 3)).astype(np.float32)


def residual():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((12, 12, 3))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(inputs)
    x = layers.ReLU(name="stem_relu")(layers.BatchNormalization(name="stem_norm")(x))
    y = layers.SeparableConv2D(8, 3, padding="same", name="separable")(x)
    x = layers.ReLU(name="sum_relu")(layers.Add(name="sum")([x, y]))
    point = layers.Conv2D(8, 1, activation="relu", name="point")
    x = keras.Sequential([keras.Input((12, 12, 8)), point, layers.Dropout(0.2)], name="inner")(x)
    x = layers.Dense(5, bias_initializer="ones", name="head")(
        layers.GlobalAveragePooling2D(name="pool")(x)
    )
    return keras.Model(inputs, x)


@pytest.fixture(scope="module")
def model():
    return residual()


def by_path(report, path, operator=""):
    return next(x for x in report.layers if x.path == path and operator in x.operator)


@pytest.mark.parametrize(
    ("scheme", "kernel", "least", "most"),
    [
        ("float32", "float32", 120, math.inf),
        ("float16", "float16", 60, 100),
        ("int8", "int8", 25, 60),
        ("int16x8", "int8", 40, 70),
    ],
)
def test_every_layer_is_found_in_every_scheme(model, scheme, kernel, least, most):
    content = tflite.convert(model, scheme, IMAGES)
    report = quantization_report(model, content, IMAGES)
    places = {(x.path, x.operator.split()[1]): x for x in report.layers}
    assert set(places) == {
        ("stem", "CONV_2D"),
        ("separable", "DEPTHWISE_CONV_2D"),
        ("separable", "CONV_2D"),
        ("sum_relu", "ADD"),
        ("inner/point", "CONV_2D"),
        ("pool", "MEAN"),
        ("head", "FULLY_CONNECTED"),
    }
    assert not report.unmatched and report.samples == 32 and not report.simulation
    assert places["stem", "CONV_2D"].layers == ("stem", "stem_norm", "stem_relu")
    with_kernel = [x for x in report.layers if x.kernel_type]
    assert {x.kernel_type for x in with_kernel} == {kernel} and len(with_kernel) == 5
    assert all(least < x.snr_db <= most and least < x.own_snr_db <= most for x in with_kernel)
    assert [x.blame_db for x in report.layers] == sorted(x.blame_db for x in report.layers)


def test_figures_of_the_output_are_what_the_interpreter_gives(model):
    content = tflite.convert(model, "int8", IMAGES)
    head = by_path(quantization_report(model, content, IMAGES), "head")
    true, found = model.predict(IMAGES, verbose=0), tflite.run(content, IMAGES)
    expected = 10 * np.log10(np.sum(true**2) / np.sum((true - found) ** 2))
    assert head.snr_db == pytest.approx(expected, abs=0.02)
    assert head.seen == pytest.approx((true.min(), true.max()), rel=1e-4)
    detail = start(content).get_output_details()[0]
    assert (head.scale, head.zero_point) == pytest.approx(detail["quantization"])
    assert head.range[0] == pytest.approx((-128 - head.zero_point) * head.scale)
    sizes = tflite.audit(content).weights
    assert head.bytes == sizes[-1].bytes + 5 * 4  # 8 x 5 codes and an int32 bias


def test_kernel_error_is_that_of_rounding_to_eight_bits(model):
    report = quantization_report(model, tflite.convert(model, "int8", IMAGES), IMAGES)
    w = keras.ops.convert_to_numpy(model.get_layer("inner").get_layer("point").kernel)
    scale = np.abs(w).max(axis=(0, 1, 2)) / 127
    error = w - np.rint(w / scale) * scale
    expected = 10 * np.log10(np.sum(w**2) / np.sum(error**2))
    assert by_path(report, "inner/point").kernel_snr_db == pytest.approx(expected, abs=0.01)


def spoiled(content, path_kernel, change):
    """The file with one step changed, by `change(tensors of the graph, operator)`."""
    flatbuffer = fb.parse(content)
    (number,) = [s.number for s in steps(flatbuffer) if s.label == path_kernel]
    change(flatbuffer, flatbuffer.subgraphs[0].operators[number])
    return fb.pack(flatbuffer)


def test_a_spoiled_kernel_is_to_blame_alone(model):
    content = tflite.convert(model, "int8", IMAGES)

    def coarse(flatbuffer, operator):
        buffer = flatbuffer.buffers[flatbuffer.subgraphs[0].tensors[operator.inputs[1]].buffer]
        codes = np.asarray(buffer.data, np.uint8).view(np.int8)
        buffer.data = (np.rint(codes / 40.0) * 40).astype(np.int8).view(np.uint8)

    whole = quantization_report(model, content, IMAGES)
    label = by_path(whole, "separable", "DEPTHWISE").operator
    found = quantization_report(model, spoiled(content, label, coarse), IMAGES)
    worst = found.layers[0]
    assert worst.operator == label and worst.own_snr_db < 25 and worst.kernel_snr_db < 25
    for layer in found.layers[1:]:
        before = next(x for x in whole.layers if x.operator == layer.operator)
        assert layer.own_snr_db == pytest.approx(before.own_snr_db)  # no share in it
    # What comes after it carries the error on, what comes before does not.
    assert by_path(found, "sum_relu").snr_db < by_path(whole, "sum_relu").snr_db - 3
    assert by_path(found, "stem").snr_db == pytest.approx(by_path(whole, "stem").snr_db)


@pytest.mark.filterwarnings("error:Warning. Enabling")
def test_clipping_is_told(model):
    report = quantization_report(model, tflite.convert(model, "int8", 0.2 * IMAGES), IMAGES)
    stem = by_path(report, "stem")
    assert stem.clipped > 0.1 and stem.range[1] < stem.seen[1]


def test_a_quantize_aware_model_agrees_with_its_file(model):
    trained = wrappers.quantize_aware(model, samples=IMAGES)
    content = tflite.convert(trained)
    report = quantization_report(trained, content, IMAGES)
    assert report.simulation and not report.unmatched
    assert all(layer.equal == 1 for layer in report.layers)
    assert all(30 < x.kernel_snr_db < 60 for x in report.layers if x.kernel_type)
    # The same file against the float model: every layer has an error.
    against_float = quantization_report(model, content, IMAGES)
    assert len(against_float.layers) == len(report.layers)
    assert all(x.own_snr_db < 60 for x in against_float.layers)


def test_models_without_a_graph_are_told_by_operator():
    class OnlyTensors(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(3)

        def call(self, x):
            return self.dense(tf.raw_ops.Relu(features=x))  # refuses Keras' symbolic tensors

    model = OnlyTensors()
    x = IMAGES[:, 0, 0]
    model(x[:1])
    report = quantization_report(model, tflite.convert(model, "int8", x), x)
    assert any("FULLY_CONNECTED" in layer.path for layer in report.layers)


def test_other_files_are_refused(model):
    other = keras.Sequential([keras.Input((12, 12, 3)), layers.Conv2D(3, 5), layers.Flatten()])
    content = tflite.convert(other, "int8", IMAGES)
    with pytest.raises(InputError, match=r"must be made of model .* none of its kernels"):
        quantization_report(model, content, IMAGES)
    small = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    with pytest.raises(InputError, match="must have the model's inputs"):
        quantization_report(model, tflite.convert(small, "float32"), IMAGES)
    with pytest.raises(InputError, match="A model must be a Keras 3 model"):
        quantization_report("model.keras", content, IMAGES)
    with pytest.raises(InputError, match="A model must be a Keras 3 model") as error:
        quantization_report(content, model, IMAGES)
    assert len(str(error.value)) < 300
    with pytest.raises(InputError, match="samples of quantization_report must be given"):
        quantization_report(model, content, None)
    with pytest.raises(InputError, match="most of quantization_report"):
        quantization_report(model, content, IMAGES, most=0)


def test_table_dict_and_plot(model, tmp_path):
    report = quantization_report(model, tflite.convert(model, "float32", IMAGES), IMAGES, most=4)
    lines = str(report).splitlines()
    assert len(lines) == 2 + len(report.layers) and "on 4 samples" in lines[0]
    assert "exact" in lines[-1]
    found = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert {x["path"] for x in found["layers"]} == {x.path for x in report.layers}
    report.plot().savefig(tmp_path / "errors.png")


def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = models.load("digits_cnn")
    model.save("net.keras")
    samples = np.random.default_rng(0).random((16, *model.input_shape[1:]), np.float32)
    pathlib.Path("net.tflite").write_bytes(tflite.convert(model, "int8", samples))
    words = ["quantization", "net.keras", "net.tflite", "--data", "digits", "--samples", "8"]
    assert analyze.main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["samples"] == 8 and len(result["layers"]) >= 4
    assert analyze.main([*words, "--plot", "errors.svg"]) == 0
    assert "worst of its own first" in capsys.readouterr().out
    assert "<svg" in pathlib.Path("errors.svg").read_text()
    for wrong, part in [
        ([], "takes what to analyze: quantization"),
        (["quantisation", *words[1:]], "Did you mean 'quantization'?"),
        (words[:2], "takes MODEL and FILE"),
        (words[:3], "needs --data"),
        ([*words, "--plot", "errors.gif"], "Unknown kind of picture 'gif'"),
    ]:
        assert analyze.main(wrong) == 2
        assert part in capsys.readouterr().err


def test_layer_normalization_of_a_trained_model_is_reported():
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((8,)), layers.Dense(8), layers.LayerNormalization(), layers.Dense(2)]
    )
    x = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    quantized = wrappers.quantize_aware(model, samples=x)
    report = quantization_report(quantized, tflite.convert(quantized), x)
    assert {layer.path for layer in report.layers} >= {"dense", "dense_1"}
