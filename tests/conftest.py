import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
# Two workers share two cores: one thread each keeps the timings of tests steady.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import keras
import pytest


@pytest.fixture(autouse=True)
def same_start():
    """Every test starts from the same seeds and an empty Keras session."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
