"""Models from one word: files of Keras 2 and 3, folders, functions, references, and bad ones."""

import json
import pickle
import zipfile

import h5py
import keras
import numpy as np
import pytest

from tfcompress import models, tflite
from tfcompress.errors import InputError

layers = keras.layers
IMAGES = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)


def convolutional():
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.DepthwiseConv2D(3),
            layers.SeparableConv2D(4, 3),
            layers.Conv2DTranspose(2, 3),
            layers.BatchNormalization(),
        ]
    )


def with_lambda():
    return keras.Sequential([keras.Input((4,)), layers.Lambda(lambda x: x * 2.0)])


def saved(model, path):
    model.save(path)
    return path


def as_keras_2(path):
    """Adds to the file what Keras 2 wrote and Keras 3 refuses."""
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        for layer in config["config"]["layers"]:
            if "Conv2D" in layer["class_name"]:
                layer["config"]["groups"] = 1
            if layer["class_name"] == "SeparableConv2D":
                layer["config"]["kernel_regularizer"] = None
        file.attrs["model_config"] = json.dumps(config)
    return path


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_saved_models_compute_the_same(tmp_path, suffix):
    model = convolutional()
    loaded = models.load(saved(model, tmp_path / f"model.{suffix}"))
    np.testing.assert_array_equal(model(IMAGES), loaded(IMAGES))


def test_keras_2_files_that_keras_3_refuses(tmp_path):
    model = convolutional()
    path = as_keras_2(saved(model, tmp_path / "old.h5"))
    before = path.read_bytes()
    with pytest.raises(Exception, match="groups"):
        keras.models.load_model(path, compile=False)
    np.testing.assert_array_equal(model(IMAGES), models.load(path)(IMAGES))
    assert path.read_bytes() == before


def test_an_argument_that_changes_the_model_is_not_dropped(tmp_path):
    path = saved(convolutional(), tmp_path / "old.h5")
    with h5py.File(path, "r+") as file:
        text = file.attrs["model_config"]
        config = json.loads(text)
        config["config"]["layers"][1]["config"]["groups"] = 3
        file.attrs["model_config"] = json.dumps(config)
    with pytest.raises(InputError, match="groups"):
        models.load(path)


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_lambda_code_is_executed_only_if_unsafe(tmp_path, suffix):
    path = saved(with_lambda(), tmp_path / f"model.{suffix}")
    with pytest.raises(InputError, match="--unsafe"):
        models.load(path)
    doubled = models.load(path, unsafe=True)(np.ones((1, 4)))
    np.testing.assert_array_equal(doubled, np.full((1, 4), 2.0))


class Bomb:
    fuse = "intact"

    def __reduce__(self):
        return (setattr, (Bomb, "fuse", "burnt"))


@pytest.mark.parametrize("name", ["model.pkl", "model.keras", "model.h5"])
def test_pickles_are_opened_only_if_unsafe(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError, match="pickle"):
        models.load(path)
    assert Bomb.fuse == "intact"
    with pytest.raises(InputError, match=r"must hold a keras.Model"):
        models.load(path, unsafe=True)
    assert Bomb.fuse == "burnt"
    Bomb.fuse = "intact"


def test_classes_of_other_packages_are_not_imported(tmp_path):
    path = saved(convolutional(), tmp_path / "model.keras")
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(parts["config.json"])
    layer = config["config"]["layers"][1]
    layer.update(module="this", class_name="Zen", registered_name="this>Zen")
    parts["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    with pytest.raises(InputError, match="Zen"):
        models.load(path)


@pytest.mark.parametrize("suffix", ["keras", "h5"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_truncated_files_are_one_line(tmp_path, suffix, share):
    path = saved(convolutional(), tmp_path / f"model.{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match="corrupt|cannot be loaded") as caught:
        models.load(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_weights_alone_are_no_model(tmp_path):
    path = tmp_path / "only.weights.h5"
    convolutional().save_weights(path)
    with pytest.raises(InputError, match="weights only"):
        models.load(path)


def test_weights_that_are_not_finite_are_named(tmp_path):
    model = convolutional()
    kernel = model.layers[0].kernel
    kernel.assign(kernel * np.inf)
    with pytest.raises(InputError, match="depthwise_conv2d.*/kernel"):
        models.load(saved(model, tmp_path / "model.keras"))


def test_a_saved_model_folder_exports(tmp_path):
    model = convolutional()
    model.export(tmp_path / "folder", verbose=False)
    loaded = models.load(tmp_path / "folder")
    np.testing.assert_allclose(loaded(IMAGES), model(IMAGES), atol=1e-6)
    content = tflite.convert(loaded, "int8", samples=IMAGES)
    assert tflite.audit(content).full_integer
    with pytest.raises(InputError, match="no SavedModel"):
        models.load(tmp_path)


def test_functions(tmp_path, monkeypatch):
    (tmp_path / "my_models.py").write_text(
        "import keras\n"
        "def tiny():\n"
        "    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])\n"
        "def wrong():\n"
        "    return 3\n"
        "def broken():\n"
        "    return tiny(3)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert models.load("python:my_models:tiny").count_params() == 10
    for spec, message in [
        ("python:my_models:wrong", "must return a keras.Model"),
        ("python:my_models:broken", r"raised TypeError: .* \(my_models.py, line 7\)"),
        ("python:my_models:absent", "absent"),
        ("python:no_such_module:f", "no_such_module"),
        ("python:my_models", "python:module:function"),
    ]:
        with pytest.raises(InputError, match=message):
            models.load(spec)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("lenet300", 266_610),
        ("lenet5", 431_080),
        ("digits_cnn", 21_842),
        ("resnet8", 78_666),  # MLPerf Tiny's own count
        ("dscnn", 24_908),
        ("mobilenet:0.25", 475_544),  # keras.applications' table: 0.5 million
    ],
)
def test_references_have_the_size_that_is_published(name, parameters):
    assert models.load(name).count_params() == parameters


def test_references_adapt_to_the_data():
    assert models.load("lenet5", data_shape=(32, 32, 3), classes=4).output_shape == (None, 4)
    small = models.load("mobilenet:0.5", data_shape=(64, 64, 1), classes=3)
    assert small.input_shape == (None, 64, 64, 1)
    with pytest.raises(InputError, match="samples of"):
        models.load("lenet5", data_shape=(4, 4, 1))
    with pytest.raises(InputError, match="height, width, channels"):
        models.load("resnet8", data_shape=(64,))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("lenet", "Did you mean 'lenet5'"),
        ("absent.keras", "does not exist"),
        ("mobilenet:wide", "must be a number"),
        ("mobilenet:-1", "must be positive"),
        ("lenet5:2", "has no width"),
    ],
)
def test_unknown_models_are_one_line(spec, message):
    with pytest.raises(InputError, match=message):
        models.load(spec)
