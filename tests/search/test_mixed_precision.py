"""Mixed precision by search: what is chosen is a file, and it is what it says."""

import json

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tfcompress import tflite
from tfcompress.errors import InputError
from tfcompress.report import quantization_report
from tfcompress.search.allocation import rules_for

layers = keras.layers


@pytest.fixture(scope="module")
def data():
    digits = tfc.data.load("digits")
    return digits.prepare(digits.x_train[:300]), digits.y_train[:300]


@pytest.fixture(scope="module")
def model(data):
    """A trained classifier whose first layer minds coarse weights, and whose third does not."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input(data[0].shape[1:]),
            layers.Conv2D(8, 3, activation="relu", name="first"),
            layers.Conv2D(16, 3, activation="relu", name="second"),
            layers.Flatten(),
            layers.Dense(64, activation="relu", name="wide"),
            layers.Dense(10, activation="softmax", name="head"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    model.fit(*data, epochs=12, verbose=0)
    return model


@pytest.fixture(scope="module")
def found(model, data):
    return tfc.mixed_precision(model, data, max_bytes=18_000, points=4)


def test_the_file_keeps_the_limit_and_holds_the_allocation(found, model, data):
    assert len(found.flatbuffer) == found.chosen.size_bytes <= 18_000
    assert len(set(found.chosen.schemes.values())) == 2  # neither scheme alone would do
    report = quantization_report(model, found.flatbuffer, data[0], most=4)
    stored = {layer.path: layer.kernel_type for layer in report.layers if layer.kernel_type}
    assert stored == found.chosen.schemes
    again = tfc.convert(model, "mixed", data[0][:200], rules=found.rules)
    assert again == found.flatbuffer


def test_losses_are_those_of_the_files(found, model, data):
    x, y = data
    right = tflite.run(found.flatbuffer, x).argmax(-1) == y
    assert found.chosen.accuracy == pytest.approx(right.mean())
    scale = tflite.audit(found.flatbuffer).outputs[0]["scale"]
    outputs = np.maximum(tflite.run(found.flatbuffer, x), scale / 2)
    picked = np.take_along_axis(outputs / outputs.sum(-1, keepdims=True), y[:, None], axis=1)
    assert found.chosen.loss == pytest.approx(-np.log(picked).mean(), rel=1e-3)
    single = rules_for(dict.fromkeys(found.losses, "int8") | {"first": "int4"}, {})
    content = tfc.convert(model, "mixed", x[:200], rules=single)
    assert found.size_bytes["first"]["int4"] == len(content)


def test_the_front_rises_in_bytes_and_predictions_fall(found):
    sizes = [point.size_bytes for point in found.front]
    predicted = [point.predicted_loss for point in found.front]
    assert sizes == sorted(sizes) and predicted == sorted(predicted, reverse=True)
    assert set(found.front[0].schemes.values()) == {"int4"}
    assert found.chosen in found.front
    base = found.losses["first"]["int8"]
    for point in found.front:
        parts = [found.losses[path][scheme] - base for path, scheme in point.schemes.items()]
        assert point.predicted_loss == pytest.approx(base + sum(parts))


def test_float16_and_int8_in_one_file(model, data):
    found = tfc.mixed_precision(
        model, data, ("float16", "int8"), max_bytes=30_000, most=64, points=2
    )
    kinds = tflite.audit(found.flatbuffer).tensors
    assert "FLOAT16" in kinds and "INT8" in kinds and len(found.flatbuffer) <= 30_000
    assert set(found.chosen.schemes.values()) == {"float16", "int8"}


def test_limits_on_loss_and_accuracy(model, data):
    tight = tfc.mixed_precision(model, data, max_accuracy_drop=0.0, most=128, points=3)
    assert tight.chosen.accuracy >= tight.reference.accuracy
    loose = tfc.mixed_precision(model, data, max_loss_increase=10.0, most=128, points=2)
    assert set(loose.chosen.schemes.values()) == {"int4"}
    assert loose.chosen.size_bytes <= tight.chosen.size_bytes


def test_without_labels_the_outputs_decide(model, data):
    found = tfc.mixed_precision(model, data[0], max_loss_increase=0.5, most=64, points=2)
    assert found.chosen.accuracy is None and 0 < found.chosen.loss < 0.5
    assert found.reference.loss < 1e-6


def test_time_is_a_limit():
    small = keras.Sequential([keras.Input((8,)), layers.Dense(8), layers.Dense(3)])
    x = np.random.default_rng(0).normal(size=(32, 8)).astype(np.float32)
    found = tfc.mixed_precision(small, x, ("float32", "int8"), max_latency_ms=1000.0, points=2)
    # Nothing forces a choice: each layer has what is best for the loss.
    best = {path: min(row, key=row.get) for path, row in found.losses.items()}
    assert found.chosen.schemes == best and 0 < found.chosen.latency_ms < 1000


def test_what_there_is_no_kernel_for_is_excluded(data):
    inputs = keras.Input((6, 8))
    attention = layers.MultiHeadAttention(2, 4, name="attention")(inputs, inputs)
    model = keras.Model(inputs, layers.Dense(3, name="head")(layers.Flatten()(attention)))
    x = np.random.default_rng(0).normal(size=(40, 6, 8)).astype(np.float32)
    found = tfc.mixed_precision(model, x, max_loss_increase=1.0, most=32, points=2)
    for path, reasons in found.excluded.items():
        assert found.chosen.schemes[path] not in reasons
    assert found.chosen.schemes["head"] == "int4"


def test_table_dict_and_plot(found, tmp_path):
    text = str(found)
    assert "<- chosen" in text and all(path in text for path in found.losses)
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert values["chosen"]["schemes"] == found.chosen.schemes and "flatbuffer" not in values
    found.plot().savefig(tmp_path / "front.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs just one of max_bytes"),
        ({"max_bytes": 1, "max_latency_ms": 1}, "Received: max_bytes, max_latency_ms"),
        ({"max_bytes": -1}, "max_bytes of mixed_precision must be a number"),
        ({"schemes": ["int8", "int5"], "max_bytes": 9}, "Unknown scheme .* Did you mean"),
        ({"schemes": ["int8"], "max_bytes": 9}, "must be at least two"),
        ({"schemes": "int8", "max_bytes": 9}, "must be names"),
        ({"points": 1, "max_bytes": 9}, "points of mixed_precision"),
        ({"max_bytes": 500, "points": 2, "most": 16}, "max_bytes of mixed_precision must be at"),
    ],
)
def test_what_cannot_be_used(arguments, message, model, data):
    with pytest.raises(InputError, match=message):
        tfc.mixed_precision(model, data, **arguments)
