"""Small models and data for quantization-aware training."""

import keras
import numpy as np


def data(n=160, shape=(8, 8, 4), seed=0):
    """Images and the labels that their channels' means give."""
    x = np.random.default_rng(seed).normal(size=(n, *shape)).astype(np.float32)
    return x, x.mean(axis=tuple(range(1, x.ndim - 1))).argmax(-1)


def functional(build, shape=(8, 8, 4)):
    """A functional model whose weights, biases and BatchNorms are not as they start."""
    inputs = keras.Input(shape)
    model = keras.Model(inputs, build(inputs))
    random = np.random.default_rng(1)
    for variable in model.weights:
        if variable.name in ("bias", "beta", "moving_mean"):
            variable.assign(random.normal(0, 0.3, variable.shape))
        elif variable.name in ("gamma", "moving_variance"):
            variable.assign(random.uniform(0.5, 2, variable.shape))
    return model


def compile_and_fit(model, x, y, **options):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compiling = {k: options.pop(k) for k in list(options) if k in ("jit_compile", "run_eagerly")}
    model.compile(keras.optimizers.Adam(1e-3), loss=loss, metrics=["accuracy"], **compiling)
    return model.fit(x, y, **({"batch_size": 32, "verbose": 0} | options))
