import io

import numpy as np
import pytest
from PIL import Image

from tfcompress.report import plots


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def has_color(png, color):
    wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((pixels(png) == wanted).all(axis=-1).any())


@pytest.fixture
def normal():
    return np.random.default_rng(0).normal(size=(3, 3, 4, 8)).astype(np.float32)


def test_weights_before_and_after_are_both_drawn(normal):
    png = plots.weights("conv/kernel", normal, np.sign(normal))
    assert has_color(png, plots.BEFORE) and has_color(png, plots.AFTER)
    assert not has_color(plots.weights("conv/kernel", normal, None), plots.AFTER)


@pytest.mark.parametrize(
    "values",
    [np.zeros((2, 2)), np.full((2, 2), 3.0), np.array([[np.nan, 1.0]]), np.zeros((0, 3)), None],
)
@pytest.mark.filterwarnings("error")
def test_degenerate_weights_are_drawn_without_a_warning(values):
    assert plots.weights("a $ kernel", values, values).startswith(b"\x89PNG")


def test_equal_input_gives_equal_bytes(normal, record):
    assert plots.weights("k", normal, None) == plots.weights("k", normal, None)
    assert plots.training(record["stages"]) == plots.training(record["stages"])


def test_training_draws_sparsity_and_accuracy_where_told(record):
    png = plots.training(record["stages"])
    assert has_color(png, plots.ACCENT) and has_color(png, plots.AFTER)
    only_trained = plots.training(record["stages"][:1])
    assert has_color(only_trained, plots.AFTER)
    assert plots.training([]) is None
    assert plots.training(record["stages"][2:]) is None


def test_training_counts_epochs_where_a_stage_has_no_steps(record):
    by_steps = plots.training(record["stages"])
    del record["stages"][0]["history"]["step"]
    assert plots.training(record["stages"]) != by_steps


def test_missing_numbers_in_a_history_leave_a_gap(record):
    record["stages"][1]["history"]["sparsity"] = [None, 0.8]
    assert plots.training(record["stages"]).startswith(b"\x89PNG")


def test_bytes_and_times(record):
    measures = record["stages"][1]["measures"]
    assert has_color(plots.kernel_bytes(measures), plots.AFTER)
    assert plots.kernel_bytes(None) is None
    assert has_color(plots.file_bytes(record["audit"]), plots.AFTER)
    assert plots.file_bytes({"weights": []}) is None
    first, second = record["latency"]
    assert has_color(plots.operator_times(first), plots.AFTER)
    first["operators"][0]["delegated"] = False
    assert not has_color(plots.operator_times(first), plots.AFTER)
    assert has_color(plots.operator_times(first), plots.ACCENT)
    assert plots.operator_times(second) is None
