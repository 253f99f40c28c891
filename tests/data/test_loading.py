import sys
import types

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfcompress import data
from tfcompress.data import images as folder_images
from tfcompress.data.loading import stratified_split
from tfcompress.errors import InputError

from .folders import write_folder


def arrays(n=40, classes=4):
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (n, 6, 5), dtype=np.uint8)
    return x, np.arange(n) % classes


def npz(path, **changes):
    x, y = arrays()
    content = {"x_train": x, "y_train": y, "x_test": x[:8], "y_test": y[:8]} | changes
    np.savez(path, **{key: value for key, value in content.items() if value is not None})
    return f"npz:{path}"


def test_digits_are_split_for_good():
    first, second = data.load("digits", seed=0), data.load("digits", seed=1)
    assert first.shape == (8, 8, 1) and first.classes == 10
    np.testing.assert_array_equal(first.x_test, second.x_test)
    assert (first.x_validation != second.x_validation).any()
    counts = np.bincount(first.y_test)
    assert counts.min() >= 34 and counts.max() <= 37
    total = len(first.x_train) + len(first.x_validation) + len(first.x_test)
    assert total == 1797
    assert first.prepare(first.x_train).max() == 1.0


def test_split_is_stratified_complete_and_keeps_the_rare():
    labels = np.array([0] * 50 + [1] * 10 + [2] * 2 + [3])
    kept, held = stratified_split(labels, 0.1, seed=3)
    assert sorted([*kept, *held]) == list(range(63))
    assert np.bincount(labels[held], minlength=4).tolist() == [5, 1, 1, 0]


def test_npz_both_layouts(tmp_path):
    four = data.load(npz(tmp_path / "four.npz"))
    assert four.shape == (6, 5, 1) and len(four.x_test) == 8
    x, y = arrays()
    np.savez(tmp_path / "two.npz", x=x, y=y)
    two = data.load(f"npz:{tmp_path / 'two.npz'}", test=0.25)
    assert len(two.x_test) == 8 and len(two.x_train) + len(two.x_validation) == 32


@pytest.mark.parametrize("word", data.STANDARDIZATIONS)
def test_standardisation(tmp_path, word):
    loaded = data.load(npz(tmp_path / "a.npz"), standardize=word)
    seen = loaded.prepare(loaded.x_train)
    assert seen.dtype == np.float32
    if word == "standard":
        assert abs(seen.mean()) < 1e-5 and abs(seen.std() - 1) < 1e-5
    else:
        stored = loaded.x_train.astype(np.float32)
        np.testing.assert_allclose(seen, stored / 255 if word == "unit" else stored, rtol=1e-6)


def test_folder_of_images(tmp_path):
    loaded = data.load(write_folder(tmp_path), validation=0.25)
    assert loaded.shape == (6, 5, 3) and loaded.classes == 2 and len(loaded.x_test) == 8
    assert loaded.x_train.dtype == np.uint8
    resized = data.load(f"images:{tmp_path}", size=(3, 4), validation=0.25)
    assert resized.shape == (3, 4, 3)


def test_folder_without_test_images_is_split(tmp_path):
    loaded = data.load(write_folder(tmp_path, parts=["train"], mode="L"), test=0.25)
    assert loaded.shape == (6, 5, 1) and len(loaded.x_test) == 2


def test_large_folder_is_decoded_on_the_fly(tmp_path, monkeypatch):
    source = write_folder(tmp_path)
    whole = data.load(source, standardize="standard")
    monkeypatch.setattr(folder_images, "MEMORY_LIMIT_BYTES", 0)
    lazy = data.load(source, standardize="standard")
    assert lazy.x_train.dtype.kind == "U" and lazy.shape == whole.shape
    np.testing.assert_array_equal(lazy.prepare(lazy.x_test), whole.prepare(whole.x_test))
    np.testing.assert_array_equal(lazy.samples(3), whole.samples(3))
    before = data.load(source).fingerprint
    Image.fromarray(np.zeros((6, 5, 3), np.uint8)).save(tmp_path / "test" / "cat" / "0.png")
    assert data.load(source).fingerprint != before


def module_with(monkeypatch, function):
    module = types.ModuleType("their_data")
    module.load = function
    monkeypatch.setitem(sys.modules, "their_data", module)
    return "python:their_data:load"


def test_python_function(monkeypatch):
    x, y = arrays()
    pairs = tf.data.Dataset.from_tensor_slices((x[..., None], y))
    returned = {
        "positions": ((x, y), (x[:8], y[:8])),
        "two": (x, y),
        "keys": {"x": x, "y": y},
        "single pairs": pairs,
        "batches": pairs.batch(7),
        "two data sets": (pairs, pairs.take(8).batch(4)),
    }
    for case, value in returned.items():
        loaded = data.load(module_with(monkeypatch, lambda value=value: value))
        assert loaded.shape == (6, 5, 1) and loaded.classes == 4, case


def test_samples_are_training_images_without_repetition():
    loaded = data.load("digits")
    samples = loaded.samples(50, seed=2)
    assert samples.shape == (50, 8, 8, 1) and samples.dtype == np.float32
    train = {image.tobytes() for image in loaded.prepare(loaded.x_train)}
    assert all(image.tobytes() in train for image in samples)
    assert len(loaded.samples(10**6)) == len(loaded.x_train)


def test_fingerprint_tells_data_apart(tmp_path):
    first = data.load(npz(tmp_path / "a.npz")).fingerprint
    assert data.load(npz(tmp_path / "b.npz")).fingerprint == first
    x, y = arrays()
    x[3, 0, 0] += 1
    assert data.load(npz(tmp_path / "c.npz", x_train=x)).fingerprint != first
    assert data.load(npz(tmp_path / "a.npz"), standardize="none").fingerprint != first


BAD_NPZ = {
    "x_train, y_train, x_test, y_test or x, y": {"y_train": None},
    "one length": {"y_train": np.arange(39) % 4},
    "must be integers": {"y_train": np.arange(40) + 0.5},
    "integers. Received: dtype": {"y_train": np.array(["a", "b"] * 20)},
    "Received: -1 at index 0": {"y_train": np.arange(40) % 4 - 1},
    "only class 2": {"y_train": np.full(40, 2)},
    "in [0, 4)": {"y_test": np.arange(8)},
    "NaN or infinity in image 0": {"x_train": np.full((40, 6, 5), np.nan)},
    "NaN or infinity in image 1": {"x_test": np.array([1, np.inf] * 4)[:, None, None] * np.ones(5)},
    "one shape": {"x_test": np.zeros((8, 5, 5), np.uint8)},
    "real numbers": {"x_train": np.zeros((40, 6, 5), complex)},
    "rows (n, features)": {"x_train": np.zeros(40)},
    "pickled objects": {"x_train": np.array([{}] * 40, dtype=object)},
}


@pytest.mark.parametrize("message", BAD_NPZ)
def test_bad_npz_is_one_line(tmp_path, message):
    with pytest.raises(InputError) as caught:
        data.load(npz(tmp_path / "bad.npz", **BAD_NPZ[message]))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_bad_sources(tmp_path, monkeypatch):
    (tmp_path / "junk.npz").write_bytes(b"PK\x03\x04 not a zip file")
    (tmp_path / "cut.npz").write_bytes(b"junk")
    np.save(tmp_path / "single.npy", np.zeros(3))
    np.savez(tmp_path / "other.npz", images=np.zeros(3), labels=np.zeros(3))
    (tmp_path / "empty").mkdir()
    (tmp_path / "none" / "train").mkdir(parents=True)
    source = module_with(monkeypatch, lambda: 3)
    for word, message in {
        "npy:a": "Did you mean 'npz'",
        "npz": "needs a place",
        "digits:8": "takes no place",
        f"npz:{tmp_path}/missing.npz": "no such file",
        f"npz:{tmp_path}/junk.npz": "not a readable npz",
        f"npz:{tmp_path}/cut.npz": "not a readable npz",
        f"npz:{tmp_path}/other.npz": "Received: ['images', 'labels']",
        f"npz:{tmp_path}/single.npy": "single array",
        f"images:{tmp_path}/empty": "must be a folder with train",
        f"images:{tmp_path}/none": "one folder per class",
        "keras:mnits": "Did you mean 'mnist'",
        "python:no_such_module_at_all:f": "cannot be imported",
        "python:their_data": "python:MODULE:FUNCTION",
        "python:their_data:laod": "Did you mean 'load'",
        source: "must return",
    }.items():
        with pytest.raises(InputError) as caught:
            data.load(word)
        assert message in str(caught.value), word


def test_what_a_users_function_raises_is_one_line(monkeypatch):
    source = module_with(monkeypatch, lambda: 1 // 0)
    with pytest.raises(InputError, match=r"raised ZeroDivisionError: .* \(test_loading.py, line "):
        data.load(source)


def test_bad_folders(tmp_path):
    source = write_folder(tmp_path)
    odd = tmp_path / "train" / "cat" / "odd.png"
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(odd)
    with pytest.raises(InputError, match="odd.png has another size"):
        data.load(source)
    broken = (tmp_path / "train" / "cat" / "0.png").read_bytes()[:60]
    odd.write_bytes(broken)
    with pytest.raises(InputError, match="odd.png is unreadable"):
        data.load(source)
    odd.write_bytes(b"no image")
    with pytest.raises(InputError, match="odd.png is unreadable"):
        data.load(source)
    odd.unlink()
    (tmp_path / "test" / "cow").mkdir()
    with pytest.raises(InputError, match="'cow'"):
        data.load(source)
    (tmp_path / "train" / "cow").mkdir()
    with pytest.raises(InputError, match="cow must hold"):
        data.load(source)


def test_bad_options():
    for options, message in (
        ({"validation": 0}, "validation=0"),
        ({"test": 1.0}, "test=1.0"),
        ({"standardize": "units"}, "Did you mean 'unit'"),
        ({"size": 8}, "images:FOLDER only"),
    ):
        with pytest.raises(InputError, match=message):
            data.load("digits", **options)
