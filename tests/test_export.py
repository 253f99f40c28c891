"""`python -m tfcompress.export`, called in this process: results, files left, exit status."""

import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcompress import export, models, tflite

layers = keras.layers
JSON_KEYS = [
    "path",
    "scheme",
    "size_bytes",
    "deflated_bytes",
    "inputs",
    "outputs",
    "operators",
    "tensors",
    "float_operators",
    "delegated_operators",
    "max_abs_error",
    "agreement",
]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def model():
    model = models.load("digits_cnn")
    model.save("net.keras")
    return model


def test_int8_is_full_integer_and_says_what_it_is(model, here, capsys):
    assert export.main(["net.keras", "--data", "digits", "--samples", "64", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result) == JSON_KEYS
    content = pathlib.Path(result["path"]).read_bytes()
    audit = tflite.audit(content)
    assert result["path"] == "net.tflite" and result["size_bytes"] == len(content)
    assert audit.full_integer and result["float_operators"] == []
    assert result["inputs"][0]["dtype"] == result["outputs"][0]["dtype"] == "int8"
    assert result["tensors"] == audit.tensors
    # The weights are fresh: all classes are about as likely.
    assert 0 < result["max_abs_error"] < 0.02 and 0.5 < result["agreement"] <= 1


def test_names_are_kept_on_demand_and_the_table_is_for_readers(model, here, capsys):
    (here / "tflite_exports").mkdir()
    for arguments in (["--output", "a.tflite"], ["--keep-names"]):
        assert export.main(["net.keras", "--scheme", "float16", *arguments]) == 0
    assert "Written: tflite_exports/net.tflite" in capsys.readouterr().out
    slim, named = (here / "a.tflite"), (here / "tflite_exports" / "net.tflite")
    assert slim.stat().st_size < named.stat().st_size


def test_references_take_the_shape_of_the_data():
    assert export.main(["lenet300", "--data", "digits", "--scheme", "dynamic"]) == 0
    assert tflite.audit("lenet300.tflite").inputs[0]["shape"] == [1, 8, 8, 1]


def test_the_words_of_convert_are_flags(model, here, capsys):
    (here / "rules.yaml").write_text('- {layers: ".*conv.*", scheme: float16}\n')
    words = ["net.keras", "--data", "digits", "--samples", "16"]
    mixed = [*words, "--scheme", "mixed", "--rules", "rules.yaml", "--output", "m.tflite"]
    chosen = [*words, "--rounding", "{kmeans: {clusters: 4}}", "--ranges", "mse", "--search_ranges"]
    chosen += ["--equalize"]
    assert export.main(mixed) == export.main([*chosen, "--correct-bias"]) == 0
    assert {"FLOAT16", "INT8"} <= set(tflite.audit("m.tflite").tensors)
    audit = tflite.audit("net.tflite")
    assert audit.full_integer and max(weight.distinct for weight in audit.weights) <= 4
    assert export.main([*words, "--scheme", "int4", "--rounding", "adaround"]) == 0
    assert tflite.audit("net.tflite").tensors["INT4"] >= 1


def test_a_search_finds_the_rules_of_a_mixed_file(model, here, capsys):
    words = ["net.keras", "--data", "digits", "--samples", "32", "--scheme", "mixed"]
    search = ["--search", "{schemes: [int8, int4], max_bytes: 23000, most: 64, points: 2}"]
    assert export.main([*words, *search]) == 0
    file = pathlib.Path("net.tflite")
    assert file.stat().st_size <= 23000 and tflite.audit(file).tensors["INT4"] >= 1
    assert "<- chosen" in capsys.readouterr().err


class Rounded(layers.Layer):
    """`tf.round` has no integer kernel in LiteRT."""

    def call(self, x):
        return tf.round(x)


def test_a_file_that_is_not_full_integer_is_status_1_and_is_not_written(here, capsys, monkeypatch):
    (here / "mine.py").write_text("")
    inputs = keras.Input((8, 8, 1))
    outputs = layers.Dense(3)(Rounded()(layers.Flatten()(inputs)))
    made = keras.Model(inputs, outputs)
    monkeypatch.setattr(models, "load", lambda *args, **kwargs: made)
    assert export.main(["made", "--data", "digits", "--json"]) == 1
    captured = capsys.readouterr()
    assert "not full integer" in captured.err and "ROUND" in captured.err
    assert json.loads(captured.out)["path"] is None
    assert not list(here.glob("*.tflite"))


def npz(**arrays):
    np.savez("data.npz", **arrays)
    return "npz:data.npz"


def bad_inputs():
    labels = np.arange(40) % 2
    wrong = {"x": np.zeros((40, 9, 9, 1), np.float32), "y": labels}
    yield "missing model", ["absent.keras"], "does not exist"
    yield "no model", [], "one MODEL"
    yield "unknown scheme", ["net.keras", "--scheme", "int9"], "Did you mean 'int8'"
    yield "no samples", ["net.keras"], "--data"
    yield "unknown rounding", ["net.keras", "--rounding", "adround"], "Did you mean 'adaround'"
    yield "not YAML", ["net.keras", "--ranges", "{"], "The value of --ranges is not YAML"
    yield "no rules", ["net.keras", "--rules", "none.yaml"], "none.yaml cannot be read"
    mixed = ["net.keras", "--scheme", "mixed", "--data", "digits"]
    yield "no mixed file", ["net.keras", "--search", "{max_bytes: 9}"], "--search needs --scheme"
    yield "no mapping", [*mixed, "--search", "9"], "--search must be a mapping"
    yield "typo", [*mixed, "--search", "{max_byte: 9}"], "Did you mean 'max_bytes'"
    yield "two limits", [*mixed, "--search", "{max_bytes: 9, max_latency_ms: 1}"], "max_latency_ms"
    yield "biases", ["net.keras", "--correct_bias", "--scheme", "int4"], "--correct_bias is for"
    yield "unknown standardisation", ["net.keras", "--standardize", "unitt"], "Did you mean 'unit'"
    yield "unknown data", ["net.keras", "--data", "digit"], "Did you mean 'digits'"
    yield "another shape", ["net.keras", "--data", wrong], "(n, 8, 8, 1). Received: (28, 9, 9, 1)"
    yield "no folder", ["net.keras", "--scheme", "float32", "--output", "net.keras/x"], "written"
    yield "unknown flag", ["net.keras", "--schema", "int8"], "schem"
    yield "corrupt", ["broken.keras", "--scheme", "float32"], "broken.keras"


@pytest.mark.parametrize(("arguments", "message"), [b[1:] for b in bad_inputs()])
def test_bad_input_is_one_line_status_2_and_no_file(model, here, arguments, message, capfd):
    (here / "broken.keras").write_bytes((here / "net.keras").read_bytes()[:5000])
    arguments = [npz(**word) if isinstance(word, dict) else word for word in arguments]
    before = sorted(here.rglob("*"))
    assert export.main(arguments) == 2
    captured = capfd.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert message in captured.err and captured.out == ""
    assert sorted(here.rglob("*")) == before


def test_lambda_code_needs_unsafe(capsys):
    keras.Sequential([keras.Input((4,)), layers.Lambda(lambda x: x + 1.0)]).save("code.keras")
    assert export.main(["code.keras", "--scheme", "float32"]) == 2
    assert "--unsafe" in capsys.readouterr().err
    assert export.main(["code.keras", "--scheme", "float32", "--unsafe"]) == 0
    np.testing.assert_array_equal(tflite.run("code.tflite", np.zeros((1, 4))), np.ones((1, 4)))


def test_an_interrupt_leaves_no_file(model, here, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(tflite, "audit", interrupted)
    assert export.main(["net.keras", "--scheme", "float32"]) == 130
    assert capsys.readouterr().err == "error: interrupted.\n"
    assert not list(here.glob("*.tflite"))


def test_help_is_ours(capsys):
    assert export.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "Examples:" in shown and "--keep-names" in shown and "--scheme" in shown
    assert "--alsologtostderr" not in shown
