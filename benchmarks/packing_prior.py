"""Makes the files that tell `tfc.pack` what the structure of model files looks like.

    python benchmarks/packing_prior.py

They belong to the version of the format: files packed with others do not unpack. Made once, from
small networks of common layers with fresh weights, in every scheme.
"""

import pathlib
import tempfile

import keras
import numpy as np

import tfcompress as tfc
from tfcompress import packing
from tfcompress.packing import container, prior

FOLDER = pathlib.Path(packing.__file__).parent
layers = keras.layers


def perceptron():
    return keras.Sequential(
        [
            keras.Input((12, 20, 1), name="images"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(24, activation="relu"),
            layers.Dense(7),
            layers.Softmax(),
        ]
    )


def convolutions():
    return keras.Sequential(
        [
            keras.Input((24, 24, 3), name="input"),
            layers.Conv2D(12, 5, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(24, 3, strides=2, padding="same", activation="relu"),
            layers.DepthwiseConv2D(3, padding="same"),
            layers.BatchNormalization(),
            layers.ReLU(6.0),
            layers.Conv2D(48, 1, activation="relu"),
            layers.AveragePooling2D(2),
            layers.Flatten(),
            layers.Dense(16, activation="relu"),
            layers.Dropout(0.2),
            layers.Dense(10, activation="softmax", name="classes"),
        ]
    )


def residual():
    inputs = x = keras.Input((16, 16, 3))
    for filters in (8, 12):
        y = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        y = layers.BatchNormalization()(y)
        y = layers.Activation("relu")(y)
        y = layers.SeparableConv2D(filters, 3, padding="same", strides=2)(y)
        x = layers.Add()([y, layers.Conv2D(filters, 1, strides=2, padding="same")(x)])
        x = layers.ReLU()(x)
    x = layers.Concatenate()([x, layers.Activation("sigmoid")(x)])
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(4, activation="softmax")(x))


def main():
    keras.utils.set_random_seed(0)
    typical = dict.fromkeys(prior.NAMES, b"")
    for build in (residual, convolutions, perceptron):
        model = build()
        model.compile("adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
        x = np.random.default_rng(0).normal(size=(8, *model.input_shape[1:])).astype(np.float32)
        for scheme in ("float32", "float16", "dynamic", "int8"):
            typical["tflite.prior"] += container.skeleton(tfc.convert(model, scheme, x))
    with tempfile.TemporaryDirectory() as folder:  # one is enough: HDF5 files are alike, and long
        path = pathlib.Path(folder) / "model.keras"
        convolutions().save(path)
        typical["keras.prior"] = container.skeleton(path.read_bytes())
    for name, content in typical.items():
        (FOLDER / name).write_bytes(content)
        print(f"{name}: {len(content):,} bytes")


if __name__ == "__main__":
    main()
