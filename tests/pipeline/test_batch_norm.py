"""The stage `quantize_aware` with `batch_norm: train`, interrupted or not."""

import keras

from tests.pipeline import tiny
from tests.pipeline.test_run import interrupted, quiet, same
from tfcompress import tflite
from tfcompress.pipeline import run_recipe
from tfcompress.wrappers import QuantizedLayer

STAGE = {"epochs": 3, "samples": 20, "batch_norm": "train", "statistics_step": 16}
PLAN = tiny.RECIPE | {
    "stages": [{"train": {"epochs": 2, "learning_rate": 0.01}}, {"quantize_aware": STAGE}],
    "check": {"runs": 0, "max_accuracy_drop": 0.5},
}


def test_it_trains_is_folded_in_the_file_and_resumes_to_the_bit(tmp_path):
    whole = run_recipe(PLAN, tmp_path / "whole", say=quiet)
    assert whole.passed
    model = keras.models.load_model(whole.output / "model.keras")
    (conv,) = [x for x in model.layers if isinstance(x, QuantizedLayer) and x.norm is not None]
    assert conv.norm.trainable
    assert tflite.audit(whole.output / "model.tflite").full_integer
    for at in ("quantize_aware 1/3", "quantize_aware 2/3"):
        interrupted(tmp_path / "killed", at, PLAN)
    assert same(run_recipe(PLAN, tmp_path / "killed", say=quiet), whole)
