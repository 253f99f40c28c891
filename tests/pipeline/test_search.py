"""A recipe whose export searches a scheme for each layer."""

import json

import pytest

from tests.pipeline import tiny
from tests.pipeline.test_run import quiet
from tfcompress import tflite
from tfcompress.errors import InputError
from tfcompress.pipeline import run_recipe
from tfcompress.recipe import read

SEARCH = {"max_loss_increase": 5.0, "most": 64, "points": 2}
PLAN = tiny.RECIPE | {
    "stages": [{"train": {"epochs": 2, "learning_rate": 0.01}}],
    "export": {"scheme": "mixed", "samples": 20, "search": SEARCH},
    "check": {"runs": 0, "max_accuracy_drop": 1.0},
}


def test_the_file_holds_what_was_found(tmp_path):
    run = run_recipe(PLAN, tmp_path, say=quiet)
    record = json.loads((run.output / "report.json").read_text())
    found = record["search"]["chosen"]
    assert found["size_bytes"] == record["after"]["size_bytes"]
    kinds = [w.dtype.lower() for w in tflite.audit(run.output / "model.tflite").weights]
    assert sorted(kinds) == sorted(found["schemes"].values()) == ["int4", "int4"]
    again = read(run.output / "recipe.yaml")
    assert again.export.search.max_loss_increase == 5.0 and again.export.search.points == 2


@pytest.mark.parametrize(
    ("export", "message"),
    [
        ({"scheme": "mixed", "search": {}}, "needs just one of max_bytes"),
        ({"scheme": "int8", "search": SEARCH}, "search of export needs the scheme mixed"),
        ({"scheme": "mixed", "search": {"max_byts": 9}}, "Did you mean 'max_bytes'"),
        (
            {"scheme": "mixed", "search": SEARCH | {"schemes": ["int8", "int5"]}},
            "Unknown scheme of mixed_precision 'int5'",
        ),
    ],
)
def test_what_cannot_be_used(export, message):
    with pytest.raises(InputError, match=message):
        read(PLAN | {"export": export})
