import hashlib
import json
import platform

import keras
import numpy as np
import pytest

from tfcompress.errors import InputError
from tfcompress.report import manifest, sha256


def test_files_and_bytes_have_the_hash_that_sha256sum_prints(tmp_path):
    content = bytes(range(256)) * 8192  # more than one chunk
    (tmp_path / "a.bin").write_bytes(content)
    expected = hashlib.sha256(content).hexdigest()
    assert sha256(tmp_path / "a.bin") == sha256(str(tmp_path / "a.bin")) == expected
    assert sha256(content) == expected


def test_an_array_is_its_values_shape_and_type():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert sha256(array) == sha256(np.asfortranarray(array))
    others = [array.T, array.reshape(3, 2), array.astype(np.float64), array + 1, array.ravel()]
    assert len({sha256(other) for other in [array, *others]}) == 6
    assert sha256(np.float32(0)) != sha256(np.zeros(1, np.float32))


def test_a_folder_is_its_names_and_contents(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder / "class").mkdir(parents=True)
        (tmp_path / folder / "class" / "1.png").write_bytes(b"image")
    assert sha256(tmp_path / "a") == sha256(tmp_path / "b")
    (tmp_path / "b" / "class" / "1.png").rename(tmp_path / "b" / "class" / "2.png")
    assert sha256(tmp_path / "a") != sha256(tmp_path / "b")


def test_a_mapping_does_not_depend_on_its_order():
    assert sha256({"x": b"1", "y": b"2"}) == sha256({"y": b"2", "x": b"1"})
    assert sha256({"x": b"1", "y": b"2"}) != sha256({"x": b"2", "y": b"1"})


def test_what_cannot_be_hashed_is_named(tmp_path):
    with pytest.raises(InputError, match="missing.npz cannot be read"):
        manifest({}, {"data": tmp_path / "missing.npz"}, {})
    with pytest.raises(InputError, match="arrays of numbers"):
        sha256(object())


def test_the_manifest_tells_all_that_decides_a_run(tmp_path):
    (tmp_path / "model.tflite").write_bytes(b"flatbuffer")
    recipe = {"seed": 17, "stages": [{"train": {"epochs": 2}}]}
    data = {"x_train": np.zeros((2, 8)), "y_train": np.arange(2)}
    arguments = recipe, {"data": data, "model": None}, {"tflite": tmp_path / "model.tflite"}
    facts = manifest(*arguments, seed=17)

    assert json.loads(json.dumps(facts)) == facts
    assert facts["seed"] == 17 and facts["recipe"] == recipe
    assert facts["versions"]["python"] == platform.python_version()
    assert facts["versions"]["keras"] == keras.__version__
    assert facts["versions"]["numpy"] == np.__version__
    assert facts["inputs"] == {"data": sha256(data), "model": None}
    assert facts["outputs"] == {"tflite": hashlib.sha256(b"flatbuffer").hexdigest()}
    assert facts["platform"]["cores"] >= 1
    assert platform.node() not in json.dumps(facts["platform"]).split('"')

    again = manifest(*arguments, seed=17)
    assert {**again, "time": None} == {**facts, "time": None}
    other = manifest({**recipe, "seed": 18}, {}, {})
    assert other["recipe_sha256"] != facts["recipe_sha256"]
