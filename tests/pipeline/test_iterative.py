"""The stage `iterative`: all weights on their grid, whether the run was interrupted or not."""

import json

import keras
import numpy as np
import pytest

from tests.pipeline import tiny
from tests.pipeline.test_run import interrupted, quiet, same
from tfcompress import quantization
from tfcompress.errors import InputError
from tfcompress.pipeline import run_recipe

PLAN = tiny.RECIPE | {
    "stages": [
        {"train": {"epochs": 2, "learning_rate": 0.01}},
        {"fold_batch_norm": {}},
        {
            "iterative": {
                "epochs": 4,
                "bits": 8,
                "rules": [{"layers": "head", "order": "nearest"}],
            }
        },
    ],
    "check": {"runs": 0, "max_accuracy_drop": 0.5},
}


def test_it_rounds_everything_and_resumes_to_the_bit(tmp_path):
    whole = run_recipe(PLAN, tmp_path / "whole", say=quiet)
    assert whole.passed
    record = json.loads((whole.output / "report.json").read_text())
    assert record["stages"][2]["history"]["rounded"][-1] == 1
    model = keras.models.load_model(whole.output / "model.keras")
    for name, axes in (("conv", (3,)), ("head", (1,))):
        w = keras.ops.convert_to_numpy(model.get_layer(name).kernel)
        np.testing.assert_array_equal(
            w, quantization.clipping.rounded(w, quantization.fit(w, axes))
        )
    for at in ("iterative 1/4", "iterative 3/4"):
        interrupted(tmp_path / "killed", at, PLAN)
    assert same(run_recipe(PLAN, tmp_path / "killed", say=quiet), whole)


def test_batch_norm_is_refused_before_anything_is_trained(tmp_path):
    stages = [PLAN["stages"][0], PLAN["stages"][2]]
    with pytest.raises(InputError, match=r"Stage 1 \(iterative\): .*fold_batch_norm"):
        run_recipe(PLAN | {"stages": stages}, tmp_path, say=quiet)
