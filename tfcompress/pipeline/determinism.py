"""Equal runs give equal bits, on one machine."""

import contextlib
from collections.abc import Iterator

import keras
import numpy as np

# TensorFlow offers to switch determinism on in public, and off only here.
from tensorflow.python.framework import config as tf_config


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Has every TensorFlow operation add its partial sums in one fixed order.

    Without it a killed and resumed run would differ from an undisturbed one in the last bits, and
    a threshold or a cluster border turns a last bit into another model.
    """
    was_on = tf_config.is_op_determinism_enabled()
    tf_config.enable_op_determinism()
    try:
        yield
    finally:
        if not was_on:
            tf_config.disable_op_determinism()


def start_seed(seed: int, *place: int) -> int:
    """Seeds Python, NumPy and TensorFlow for one place of a run, say stage 3; returns that seed.

    Each place has its own, so that what happens there does not depend on what ran before it.
    """
    derived = int(np.random.SeedSequence([seed, *place]).generate_state(1)[0] % 2**31)
    keras.utils.set_random_seed(derived)
    return derived
