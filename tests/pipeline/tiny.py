"""A model and images small enough to run whole recipes in seconds."""

import keras
import numpy as np

from tfcompress.data import load

L = keras.layers


def model(activation="softmax", classes=4, shape=(8, 8, 1)):
    return keras.Sequential(
        [
            keras.Input(shape, name="image"),
            L.Conv2D(6, 3, strides=2, use_bias=False, name="conv"),
            L.BatchNormalization(name="norm"),
            L.ReLU(name="relu"),
            L.Flatten(name="flatten"),
            L.Dropout(0.2, name="dropout"),
            L.Dense(classes, activation=activation, name="head"),
        ],
        name="tiny",
    )


def logits():
    return model(activation=None)


def five_classes():
    return model(classes=5)


def larger_images():
    return model(shape=(9, 9, 1))


def not_finite():
    made = model()
    made.layers[0].kernel.assign(np.full(made.layers[0].kernel.shape, np.nan))
    return made


def images():
    """The digits 0 to 3, 200 of them."""
    digits = load("digits")
    chosen = np.flatnonzero(digits.y_train < 4)[:200]
    tested = np.flatnonzero(digits.y_test < 4)[:60]
    return (digits.x_train[chosen], digits.y_train[chosen]), (
        digits.x_test[tested],
        digits.y_test[tested],
    )


RECIPE = {
    "name": "tiny",
    "model": f"python:{__name__}:model",
    "data": {
        "source": f"python:{__name__}:images",
        "validation": 0.2,
        "batch_size": 16,
        "augment": {"shift": 1},
    },
    "seed": 3,
    "stages": [
        {"train": {"epochs": 3, "learning_rate": 0.01}},
        {"prune": {"end": 0.5, "epochs": 3, "update_every": 4}},
        {"fold_batch_norm": {}},
        {"cluster": {"clusters": 8, "epochs": 2}},
        {"quantize_aware": {"epochs": 2, "samples": 20}},
    ],
    "export": {"samples": 20},
    "check": {"runs": 0, "max_accuracy_drop": 0.5, "min_sparsity": 0.45, "max_distinct_values": 8},
}
