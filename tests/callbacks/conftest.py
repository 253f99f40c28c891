import keras
import numpy as np
import pytest


@pytest.fixture
def data():
    """512 samples of three classes that a line separates, 16 batches of 32."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(512, 8)).astype("float32")
    return x, np.argmax(x @ rng.normal(size=(8, 3)), axis=1)


def small_model(**compile_arguments):
    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(16, activation="relu", name="hidden"),
            keras.layers.Dense(3, name="head"),
        ]
    )
    arguments = {"optimizer": keras.optimizers.Adam(0.01)} | compile_arguments
    model.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **arguments,
    )
    return model


def zeros(layer):
    return float(np.mean(np.asarray(layer.kernel) == 0))


def distinct(layer):
    w = np.asarray(layer.kernel)
    return len(np.unique(w[w != 0]))
