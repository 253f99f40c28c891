"""Timing: the parts that are exact, and order relations that noise cannot turn round."""

import json

import keras
import numpy as np
import pytest

from tfcompress import latency as command
from tfcompress import tflite
from tfcompress.errors import InputError
from tfcompress.tflite import flatbuffer as fb
from tfcompress.tflite.interpreter import noise, start
from tfcompress.tflite.latency import arena_bytes
from tfcompress.tflite.prefixes import cuts, prefix

layers = keras.layers
IMAGES = np.random.default_rng(0).normal(size=(8, 16, 16, 4)).astype(np.float32)
JSON_KEYS = [
    "path",
    "median_ms",
    "p10_ms",
    "p90_ms",
    "ratio_to_first",
    "threads",
    "runs",
    "xnnpack",
    "delegated_operators",
    "operators",
    "arena_bytes",
]


def residual(filters=8):
    inputs = keras.Input((16, 16, 4))
    x = layers.Conv2D(filters, 3, padding="same", activation="relu")(inputs)
    y = layers.Conv2D(filters, 3, padding="same")(x)
    x = layers.ReLU()(layers.Add()([x, y]))
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("latency")
    paths = []
    for name, filters, scheme in [("small", 8, "int8"), ("large", 64, "float32")]:
        paths.append(str(folder / f"{name}.tflite"))
        with open(paths[-1], "wb") as file:
            file.write(tflite.convert(residual(filters), scheme, IMAGES))
    return paths


@pytest.mark.parametrize("scheme", ["float16", "int8"])
def test_prefixes_compute_the_inner_tensors(scheme):
    content = tflite.convert(residual(), scheme, IMAGES)
    model = fb.parse(content)
    engine = start(content, xnnpack=False)
    whole = cuts(model, 99)
    assert whole[-1] == len(model.subgraphs[0].operators)
    x = noise(engine, 3)
    for length in whole:
        part = prefix(model, length)
        assert len(part) <= len(content) + 512
        assert len(fb.parse(part).subgraphs[0].operators) <= length
        start(part)  # with XNNPACK, as it is timed
        outputs = tflite.run_integers(part, x, xnnpack=False)
    np.testing.assert_array_equal(outputs, tflite.run_integers(content, x, xnnpack=False))


def test_cuts_are_thinned_evenly():
    model = fb.parse(tflite.convert(residual(), "float32"))
    assert cuts(model, 99) == [1, 2, 3, 4, 5] and cuts(model, 2) == [2, 5] and cuts(model, 1) == [5]


def test_several_files_are_compared(files):
    small, large = tflite.measure_latency(files, runs=25)
    assert small.ratio_to_first == 1.0 and large.ratio_to_first > 1.0
    assert large.ratio_p10 <= large.ratio_to_first <= large.ratio_p90
    for result in (small, large):
        assert 0 < result.p10_ms <= result.median_ms <= result.p90_ms
        times = [operator.median_ms for operator in result.operators]
        assert min(times) >= 0 and sum(times) == pytest.approx(result.median_ms)
        assert len(times) == sum(tflite.audit(result.path).operators.values())
    # The second convolution does 64 x 64 of the first's 4 x 64 multiplications.
    assert large.operators[1].median_ms > large.operators[0].median_ms
    assert "estimated" in str(small)


def test_without_xnnpack_nothing_is_delegated(files):
    result = tflite.measure_latency(files[1], runs=3, xnnpack=False)
    assert result.delegated_operators == [] and not result.xnnpack
    assert not any(operator.delegated for operator in result.operators)
    assert tflite.measure_latency(files[1], runs=3).delegated_operators[0] == "CONV_2D"


def test_the_arena_holds_at_least_the_widest_pair_of_tensors():
    x = keras.Input((32,))
    chain = layers.Dense(1000, activation="relu")(x)
    chain = layers.Dense(500, activation="relu")(chain)
    content = tflite.convert(keras.Model(x, layers.Dense(2)(chain)), "float32")
    constants = 4 * (32 * 1000 + 1000 * 500)
    assert 4 * 1500 <= arena_bytes(content) < 4 * 1500 + 4096 < constants


def test_the_command_prints_one_list(files, capsys):
    assert command.main([*files, "--runs", "2", "--xnnpack", "false", "--threads=1", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert [list(result) for result in results] == [JSON_KEYS, JSON_KEYS]
    assert [result["path"] for result in results] == files
    assert results[0]["runs"] == 2 and results[0]["xnnpack"] is False
    assert sorted(results[0]["operators"][0]) == ["delegated", "median_ms", "name"]


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (b"TFL", [], "TFL3"),
        (bytes(range(256)) * 4, [], "TFL3"),
        (None, [], "cannot be read"),
        (b"", ["--runs", "0"], "runs"),
        (b"", ["--xnnpack", "maybe"], "xnnpack"),
    ],
)
def test_bad_input_is_one_line_and_status_2(tmp_path, content, arguments, message, capfd):
    path = tmp_path / "a.tflite"
    if content is not None:
        path.write_bytes(content)
    assert command.main([str(path), *arguments]) == 2
    captured = capfd.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert message in captured.err and captured.out == ""


def test_no_file_is_an_error():
    assert command.main([]) == 2
    with pytest.raises(InputError, match="at least one"):
        tflite.measure_latency([])
