import gc
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
# Two workers share two cores: one thread each keeps the timings of tests steady.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import keras
import pytest

# The first call of a compiled function takes long, and the machine may be busy.
hypothesis.settings.register_profile("steady", deadline=None, derandomize=True)
hypothesis.settings.load_profile("steady")


@pytest.fixture(scope="module", autouse=True)
def short_collections():
    """Takes what is there already out of the garbage collections that follow.

    Keras collects garbage whenever a session is cleared, which is before every test; among
    TensorFlow's objects that takes more time than most tests do.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def same_start():
    """Every test starts from the same seeds and an empty Keras session."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
