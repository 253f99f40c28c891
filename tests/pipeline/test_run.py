import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import zipfile

import h5py
import keras
import numpy as np
import pytest
import yaml

from tfcompress import compress as command
from tfcompress import recipe, tflite
from tfcompress.errors import InputError
from tfcompress.pipeline import run_recipe
from tfcompress.pipeline.run import are_probabilities, check_model, load_data
from tfcompress.pipeline.state import State, written_whole

from . import tiny

FILES = {
    "model.keras",
    "model.tflite",
    "baseline.tflite",
    "recipe.yaml",
    "report.json",
    "report.html",
    "manifest.json",
}


def quiet(line):
    pass


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run."""
    return run_recipe(tiny.RECIPE, tmp_path_factory.mktemp("whole") / "out", say=quiet)


def weights(result):
    """All arrays of model.keras: weights, and what it knows of its optimizer."""
    found = {}
    with zipfile.ZipFile(result.output / "model.keras") as archive:
        content = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(content) as file:
        file.visititems(
            lambda name, item: found.update({name: item[()]} if hasattr(item, "dtype") else {})
        )
    return found


def same(one, other):
    ours, theirs = weights(one), weights(other)
    equal = [ours.keys() == theirs.keys() and len(ours) > 5]
    equal += [np.array_equal(value, theirs[name]) for name, value in ours.items()]
    files = [(r.output / "model.tflite").read_bytes() for r in (one, other)]
    return all(equal) and files[0] == files[1]


def interrupted(output, at, plan=tiny.RECIPE, overrides=(), say=quiet):
    """Runs until the line of progress that begins with `at`, and stops there, as by Ctrl-C."""

    def tell(line):
        say(line)
        if line.startswith(at):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_recipe(plan, output, overrides=overrides, say=tell)


def test_files_and_report(whole):
    assert {path.name for path in whole.output.iterdir()} == FILES | {"stages"}
    record = json.loads((whole.output / "report.json").read_text())
    assert record == json.loads(json.dumps(whole.record))
    assert [s["name"] for s in record["stages"]] == [
        "train",
        "prune",
        "fold_batch_norm",
        "cluster",
        "quantize_aware",
    ]
    prune = record["stages"][1]
    assert len(prune["history"]["val_accuracy"]) == prune["epochs"] == 3
    assert prune["history"]["step"] == [10, 20, 30]
    assert prune["history"]["sparsity"][-1] == pytest.approx(0.5, abs=0.01)
    assert record["passed"] and whole.passed and not whole.problems
    assert {c["name"] for c in record["checks"]} == {
        "full_integer",
        "max_accuracy_drop",
        "min_sparsity",
        "max_distinct_values",
    }
    assert record["compression"] == pytest.approx(
        4 * record["before"]["parameters"] / record["after"]["deflated_bytes"]
    )
    assert "tiny" in (whole.output / "report.html").read_text()
    manifest = json.loads((whole.output / "manifest.json").read_text())
    assert set(manifest["outputs"]) == FILES - {"manifest.json"}


def test_the_files_are_what_the_report_says(whole):
    after = whole.record["after"]
    audit = tflite.audit(whole.output / "model.tflite")
    assert audit.full_integer and audit.size_bytes == after["size_bytes"]
    assert audit.sparsity == after["sparsity"] >= 0.45
    loaded = keras.models.load_model(whole.output / "model.keras")
    (_, _), (x, y) = tiny.images()
    right = loaded.predict(x / 16, verbose=0).argmax(-1) == y
    assert right.mean() == pytest.approx(after["keras_accuracy"])
    outputs = tflite.run(whole.output / "model.tflite", x[..., :] / 16)
    assert (outputs.argmax(-1) == y).mean() == pytest.approx(after["accuracy"])
    before = tflite.run(whole.output / "baseline.tflite", x / 16)
    assert (before.argmax(-1) == y).mean() == pytest.approx(whole.record["before"]["accuracy"])
    assert before.dtype == np.float32
    assert not tflite.audit(whole.output / "baseline.tflite").full_integer


def test_compressed_model_is_sparse_and_clustered(whole):
    for layer in whole.record["stages"][-1]["measures"]["kernels"]:
        assert layer["distinct_nonzero_values"] <= 8
        assert layer["sparsity"] > 0.3


def test_an_interrupted_run_ends_with_the_same_bits(whole, tmp_path):
    """Six times interrupted, and at last resumed with the resolved recipe."""
    for at in ("train 2/3", "stage 2", "prune 3/3", "cluster 1/2", "quantize_aware 1/2", "export"):
        interrupted(tmp_path, at)
        assert not (tmp_path / "model.tflite").exists()
    lines = []
    resumed = run_recipe(whole.output / "recipe.yaml", tmp_path, say=lines.append)
    assert sum("done before" in line for line in lines) == 5
    assert same(resumed, whole)
    for one, other in zip(resumed.record["stages"], whole.record["stages"], strict=True):
        for name in ("loss", "val_accuracy", "step", "sparsity", "distinct_values"):
            assert one["history"].get(name) == other["history"].get(name)
        assert one["accuracy"] == other["accuracy"] and one["measures"] == other["measures"]


def test_a_resumed_stage_goes_on_with_its_epoch(tmp_path):
    lines = []
    interrupted(tmp_path, "train 2/3")
    interrupted(tmp_path, "stage 2", say=lines.append)
    assert "train: goes on after epoch 2 of 3" in lines
    assert [line.split()[1] for line in lines if line.startswith("train ")] == ["3/3"]


def test_a_change_begins_anew_what_depends_on_it(tmp_path):
    plan = tiny.RECIPE | {"stages": tiny.RECIPE["stages"][:2]}
    interrupted(tmp_path / "out", "prune 2/3", plan)
    for override, at, done in (
        ("check.min_sparsity=0.1", "prune 3/3", ["train"]),
        ("stages.1.prune.end=0.6", "prune 1/3", ["train"]),
        ("data.augment.shift=0", "train 1/3", []),
        ("stages.0.train.epochs=2", "train 1/2", []),
    ):
        lines = []
        interrupted(tmp_path / "out", at, plan, [override], lines.append)
        assert [line.split()[4].rstrip(",") for line in lines if "done before" in line] == done
    changed = run_recipe(plan, tmp_path / "out", overrides=["seed=9"], say=quiet)
    fresh = run_recipe(plan, tmp_path / "fresh", overrides=["seed=9"], say=quiet)
    assert same(changed, fresh)


def test_a_removed_stage_leaves_nothing(tmp_path):
    plan = tiny.RECIPE | {"stages": tiny.RECIPE["stages"][:2]}
    interrupted(tmp_path, "prune 1/3", plan)
    interrupted(tmp_path, "export", plan | {"stages": plan["stages"][:1]})
    assert [path.name for path in (tmp_path / "stages").iterdir() if path.is_dir()] == ["0-train"]


def test_logits_are_told_from_probabilities():
    data = load_data(recipe.read(tiny.RECIPE))
    assert are_probabilities(check_model(tiny.model(), data))
    assert not are_probabilities(check_model(tiny.logits(), data))


BAD = {
    "must take the images": {"model": f"python:{tiny.__name__}:larger_images"},
    "one output of 4 units": {"model": f"python:{tiny.__name__}:five_classes"},
    "must be finite": {"model": f"python:{tiny.__name__}:not_finite"},
    "does not exist": {"model": "missing.keras"},
    "no such file": {"data": "npz:missing.npz"},
    "Stage 0 (prune)": {
        "stages": [{"prune": {"end": 0.5, "rules": [{"layers": "hed", "end": 0}]}}]
    },
    "Stage 1 (cluster): clusters for conv/kernel": {
        "stages": [{"train": {}}, {"cluster": {"clusters": 100}}]
    },
    "Received: end_step=99": {"stages": [{"prune": {"end": 0.5, "end_step": 99, "epochs": 2}}]},
    "Received: begin_step=20": {"stages": [{"cluster": {"begin_step": 20, "epochs": 2}}]},
    "Stage 0 (quantize_aware)": {
        "stages": [{"quantize_aware": {"rules": [{"layers": "nothing", "skip": "so"}]}}]
    },
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_leaves_nothing_behind(tmp_path, message):
    with pytest.raises(InputError) as caught:
        run_recipe(tiny.RECIPE | BAD[message], tmp_path / "out", say=quiet)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        run_recipe(tiny.RECIPE, tmp_path / "file" / "out", say=quiet)


def test_divergence_is_one_line(tmp_path):
    with pytest.raises(InputError, match="diverged in epoch"):
        run_recipe(
            tiny.RECIPE, tmp_path, overrides=["stages.0.train.learning_rate=1e30"], say=quiet
        )


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), written_whole(tmp_path / "a"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_state_is_not_used(tmp_path):
    path = tmp_path / "state.npz"
    state = State("f", 1, {"loss": [0.5]}, 1.0, [np.ones(3)], [np.zeros(2), np.ones(1)])
    state.write(path)
    read = State.read(path, "f")
    assert read is not None and read.epoch == 1 and len(read.optimizer) == 2
    assert State.read(path, "g") is None
    path.write_bytes(path.read_bytes()[:100])
    assert State.read(path, "f") is None
    assert State.read(tmp_path / "none.npz", "f") is None


@pytest.fixture
def small_recipe(tmp_path):
    plan = tiny.RECIPE | {"stages": tiny.RECIPE["stages"][:2], "export": {"scheme": "float32"}}
    plan["check"] = {"runs": 0, "max_accuracy_drop": 0.5, "min_sparsity": 0.45}
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(plan))
    return path


def test_command(small_recipe, tmp_path, capsys):
    words = [str(small_recipe), "--output", str(tmp_path / "out")]
    assert command.main([*words, "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["passed"] is True
    assert "prune 3/3" in printed.err
    assert command.main([*words, "--set", "check.min_sparsity=0.9"]) == 1
    printed = capsys.readouterr()
    assert "failed: min_sparsity: 0.5" in printed.err and "Compression" in printed.out
    assert command.main([*words, "--set", "stages.1.prune.edn=0.5"]) == 2
    assert "Did you mean 'end'" in capsys.readouterr().err
    assert command.main([]) == 2
    assert command.main([str(tmp_path / "missing.yaml")]) == 2


def test_kill_9(whole, tmp_path):
    """The command, killed after its first epoch of pruning, ends as the undisturbed run."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny.RECIPE))
    folder = pathlib.Path(__file__).parents[1]
    path = os.pathsep.join([str(folder.parent), str(folder)])
    output = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "tfcompress.compress", "tiny.yaml", "--output", str(output)],
        env=os.environ | {"PYTHONPATH": path},
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
    )
    state = output / "stages" / "1-prune" / "state.npz"
    deadline = time.monotonic() + 120
    while not state.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    lines = []
    resumed = run_recipe(tiny.RECIPE, output, say=lines.append)
    assert "stage 1 of 5: train, done before" in lines
    assert same(resumed, whole)


def test_one_run_at_a_time(tmp_path):
    def say(line):
        with pytest.raises(InputError, match="Another run is at work"):
            run_recipe(tiny.RECIPE, tmp_path, say=quiet)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_recipe(tiny.RECIPE, tmp_path, say=say)
