"""What the weights of a model look like, kernel by kernel."""

import csv
import json
import pathlib

import keras
import numpy as np
import pytest
from scipy import stats

import tfcompress as tfc
from tfcompress import analyze
from tfcompress.report import plots

from .test_plots import has_color

L = keras.layers


@pytest.fixture(scope="module")
def model():
    """Four heaps of weights, half of them pruned; a constant kernel; one of zeros; one of two."""
    made = keras.Sequential(
        [
            keras.Input((20,)),
            L.Dense(30, name="heaps"),
            L.Dense(10, name="constant"),
            L.Dense(10, name="zeros"),
            L.Dense(4, name="two"),
        ]
    )
    rng = np.random.default_rng(0)
    heaps = rng.choice([-3.0, -1.0, 1.0, 3.0], (20, 30)) + rng.normal(0, 0.05, (20, 30))
    heaps[rng.random((20, 30)) < 0.5] = 0
    made.get_layer("heaps").kernel.assign(heaps)
    made.get_layer("constant").kernel.assign(np.full((30, 10), 0.1))
    made.get_layer("zeros").kernel.assign(np.zeros((10, 10)))
    made.get_layer("two").kernel.assign(np.where(np.arange(40).reshape(10, 4) < 10, -1.0, 2.0))
    return made


def test_the_numbers_are_those_of_the_weights(model):
    w = model.get_layer("heaps").kernel.numpy()
    found = tfc.weights_report(model)["heaps/kernel"]
    assert (found.shape, found.dtype, found.weights) == ((20, 30), "float32", 600)
    assert found.zeros == pytest.approx((w == 0).mean())
    assert found.distinct_values == len(np.unique(w))
    assert (found.low, found.high) == (w.min(), w.max())
    assert found.mean == pytest.approx(w.mean(), abs=1e-6)
    assert found.std == pytest.approx(w.std(), rel=1e-5)
    assert found.kurtosis == pytest.approx(stats.kurtosis(w.ravel().astype(float)), rel=1e-5)
    counts = np.unique(w, return_counts=True)[1]
    assert found.entropy_bits == pytest.approx(stats.entropy(counts, base=2))


def test_heaps_are_counted_and_the_knee_is_that_of_auto(model):
    found = tfc.weights_report(model)["heaps/kernel"]
    assert found.best_silhouette == found.knee == 4
    assert np.abs(found.centroids - [-3, -1, 1, 3]).max() < 0.05
    small = tfc.cluster(model, clusters="auto")
    assert len(np.unique(small.get_layer("heaps").kernel)) == 1 + found.knee
    w = model.get_layer("heaps").kernel.numpy()
    used = w[w != 0].reshape(-1, 1)
    for trial in found.trials:
        if trial.clusters in (2, 16, 40):
            best = tfc.clustering.KMeans(trial.clusters).fit(used)
            assert trial.sse == pytest.approx(best.sse(used), rel=1e-4)
            quality = tfc.clustering.quality(used, best)
            assert trial.silhouette == pytest.approx(quality.silhouette, rel=1e-4)
    sixteen = next(trial.sse for trial in found.trials if trial.clusters == 16)
    assert found.explained == pytest.approx(1 - sixteen / (used.var() * used.size), rel=1e-5)


def test_kernels_of_one_and_two_values_and_of_zeros(model):
    report = tfc.weights_report(model)
    assert [(k.knee, k.explained, len(k.trials)) for k in report.kernels[1:]] == [
        (1, 1, 0), (0, 1, 0), (2, 1, 1)
    ]  # fmt: skip
    constant = report["constant/kernel"]
    assert (constant.std, constant.kurtosis, constant.entropy_bits) == (0, 0, 0)
    assert report["zeros/kernel"].zeros == 1
    assert report["two/kernel"].centroids.tolist() == [-1, 2]
    assert "constant/kernel is constant: one cluster" in str(report)


def test_a_large_kernel_is_looked_at_through_runs_of_its_values():
    w = np.random.default_rng(1).normal(size=(300, 200)).astype(np.float32)
    model = keras.Sequential([keras.Input((300,)), L.Dense(200, name="large")])
    model.get_layer("large").kernel.assign(w)
    (found,) = tfc.weights_report(model, clusters=(2, 32)).kernels
    assert found.trials[-1].clusters == 32 and len(found.sample) <= 8192
    book = tfc.clustering.KMeans(32).fit(w.reshape(-1, 1))
    assert found.trials[-1].sse == pytest.approx(book.sse(w.reshape(-1, 1)), rel=0.01)
    # Of 16 values for a normal distribution, Max 1960: 0.009497 of the variance is lost.
    assert found.explained == pytest.approx(1 - 0.0095, abs=3e-4)


def test_a_file_is_looked_at_in_its_integers(model):
    small = tfc.cluster(model, clusters=4, grid="int8", rules=[{"layers": "zeros", "skip": "none"}])
    flatbuffer = tfc.convert(small, "int8", np.random.default_rng(0).normal(size=(20, 20)))
    report = tfc.weights_report(flatbuffer)
    stored = tfc.audit(flatbuffer).weights
    assert [k.path for k in report.kernels] == [w.name for w in stored]
    heaps = report.kernels[0]
    assert heaps.dtype == "int8" and heaps.shape == (30, 20)
    assert heaps.best_silhouette == 3 and heaps.trials[-1].sse == 0  # beside zero
    assert heaps.distinct_values == 4 and heaps.low >= -127 and heaps.high == 127
    assert float(heaps.low).is_integer()
    assert heaps.zeros == pytest.approx(tfc.weights_report(small)["heaps/kernel"].zeros)


def test_command(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    keras.Sequential([keras.Input((20,)), *model.layers[:2]]).save("net.keras")
    assert analyze.main(["weights", "net.keras", "--clusters", "2..20", "--output", "out"]) == 0
    captured = capsys.readouterr()
    assert "kernel 1 of 2: heaps/kernel, 600 weights" in captured.err
    assert "explained by 16" in captured.out and "Written: 4 files in out" in captured.out
    rows = list(csv.DictReader(pathlib.Path("out/weights.csv").read_text().splitlines()))
    assert [row["path"] for row in rows] == ["heaps/kernel", "constant/kernel"]
    assert rows[0]["knee"] == "4" and rows[0]["shape"] == "20x30"
    saved = json.loads(pathlib.Path("out/weights.json").read_text())
    assert saved["kernels"][0]["trials"][-1]["clusters"] == 20
    for name in ("000-heaps_kernel", "001-constant_kernel"):
        assert has_color(pathlib.Path(f"out/{name}.png").read_bytes(), plots.MUTED)
    assert analyze.main(["weights", "net.keras", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kernels"][1]["knee"] == 1
    pathlib.Path("bad.tflite").write_bytes(b"nothing")
    for wrong, part in [
        (["weights"], "analyze weights takes MODEL. Received: none"),
        (["weights", "net.keras", "--clusters", "16"], "must be FEWEST..MOST, as 2..64"),
        (["weights", "net.keras", "--clusters", "1..8"], "ascending, in [2, 1024]"),
        (["weights", "net.keras", "--clusters", "9..8"], "ascending, in [2, 1024]"),
        (["weights", "missing.keras"], "does not exist"),
        (["weights", "missing.tflite"], "missing.tflite"),
        (["weights", "bad.tflite"], "bad.tflite"),
        (["weight", "net.keras"], "Did you mean 'weights'?"),
        (["weights", "net.keras", "--samples", "9"], "analyze weights takes no --samples"),
        (["quantization", "net.keras", "--output", "x"], "quantization takes no --output"),
    ]:
        assert analyze.main(wrong) == 2
        error = capsys.readouterr().err
        assert part in error and error.count("\n") == 1


def test_bad_input_is_one_line(model):
    broken = keras.models.clone_model(model)
    broken.get_layer("two").kernel.assign(np.full((10, 4), np.nan))
    for wrong, message in [
        ((broken,), "Weights of two/kernel must be finite"),
        ((keras.Sequential([keras.Input((2,)), L.ReLU()]),), "at least one kernel"),
        ((3,), "must be a Keras 3 model or a .tflite file"),
        ((model, 16), "must be two whole numbers"),
    ]:
        with pytest.raises(tfc.InputError, match=message) as caught:
            tfc.weights_report(*wrong)
        assert "\n" not in str(caught.value)
