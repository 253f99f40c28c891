"""Stages that change a model's structure, in a recipe that is interrupted and goes on."""

import keras
import pytest

from tfcompress import recipe, tflite
from tfcompress.errors import InputError
from tfcompress.pipeline import run_recipe
from tfcompress.pipeline.structure import changes

from . import tiny
from .test_run import interrupted, quiet, same

L = keras.layers


def residual():
    image = keras.Input((8, 8, 1), name="image")
    x = L.ReLU(name="relu")(L.Conv2D(8, 3, padding="same", name="stem")(image))
    y = L.Conv2D(12, 3, padding="same", activation="relu", name="inside")(x)
    y = L.Conv2D(8, 3, padding="same", name="back")(y)
    x = L.Conv2D(12, 3, activation="relu", name="last")(L.Add(name="add")([x, y]))
    x = L.Dense(10, activation="relu", name="hidden")(L.Flatten(name="flatten")(x))
    return keras.Model(image, L.Dense(4, activation="softmax", name="head")(x), name="residual")


SHORT = {"epochs": 1, "learning_rate": 0.01}
RECIPE = tiny.RECIPE | {
    "name": "residual",
    "model": f"python:{__name__}:residual",
    "stages": [
        {"train": SHORT},
        {"crop_inputs": {"max_saliency": 0.0}},
        {"drop_layers": {"max_loss_increase": 0.0001}},
        {
            "cascade": {
                "rounds": 2,
                "stages": [
                    {
                        "prune_channels": {
                            "keep_macs": 0.8,
                            "score": {"gradient": {"normalise": False}},
                            "per": "macs",
                        }
                    },
                    {"train": SHORT},
                ],
            }
        },
        {"prune": {"pattern": "channel", "score": "geometric_median", "end": 0.2} | SHORT},
        {"remove_channels": {}},
        {"merge_channels": {"clusters": 4}},
        {"trim": {"max_zeros": 0.8}},
        {"pool_head": {}},
    ],
    "export": {"scheme": "float32", "samples": 20},
    "check": {"runs": 0, "max_accuracy_drop": None},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run_recipe(RECIPE, tmp_path_factory.mktemp("whole") / "out", say=quiet)


def test_the_stages_make_a_smaller_model_and_the_report_says_what_changed(whole):
    stages = whole.record["stages"]
    assert [s["name"] for s in stages][3:7] == ["prune_channels", "train"] * 2
    macs = [tflite.audit(whole.output / name).macs for name in ("baseline.tflite", "model.tflite")]
    assert macs[1] < 0.64 * macs[0]
    pruned = stages[3]
    assert pruned["changed"] and all(" -> " in change for change in pruned["changed"].values())
    assert pruned["skipped"] == {"head": "the softmax of Dense 'head' shares its sum among them"}
    assert "changed" not in stages[4]
    assert all(len(s["changed"]) for s in stages if s["name"] in ("remove_channels", "pool_head"))


def test_a_run_goes_on_behind_stages_whose_structure_data_has_decided(whole, tmp_path):
    output = tmp_path / "out"
    for place in ("stage 5 of", "stage 11 of"):
        interrupted(output, place, RECIPE)
    lines = []
    again = run_recipe(RECIPE, output, say=lines.append)
    assert sum("done before" in line for line in lines) == 10
    assert same(whole, again)
    assert again.record["stages"][3]["changed"] == whole.record["stages"][3]["changed"]


def test_weights_are_prepared_and_the_files_integers_chosen(tmp_path):
    stages = [
        {"train": SHORT},
        {"equalize": {}},
        {"correct_bias": {"bits": 4, "samples": 20, "rounding": {"kmeans": {"clusters": 4}}}},
    ]
    export = {
        "scheme": "mixed",
        "samples": 20,
        "rounding": {"kmeans": {"clusters": 4}},
        "rules": [{"layers": "hidden", "scheme": "int4"}],
    }
    made = run_recipe(RECIPE | {"stages": stages, "export": export}, tmp_path / "out", say=quiet)
    audit = tflite.audit(made.output / "model.tflite")
    assert audit.full_integer and audit.tensors["INT4"] == 1
    assert max(weight.distinct for weight in audit.weights) <= 4
    resolved = recipe.read(made.output / "recipe.yaml")
    assert resolved.export.words["rules"] == export["rules"]


def test_changes_names_kernels_that_come_and_go():
    def small(units, *more):
        return keras.Sequential([keras.Input((3,)), L.Dense(units, name="one"), *more])

    assert changes(small(4), small(2, L.Dense(5, name="two"))) == {
        "one/kernel": "3x4 -> 3x2",
        "two/kernel": "new: 2x5",
    }
    assert changes(small(4, L.Dense(5, name="two")), small(4)) == {"two/kernel": "gone"}


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"prune_channels": {}}, "needs just one of keep_macs.*Received: none"),
        ({"prune_channels": {"keep_macs": 0.5, "keep_bytes": 0.4}}, "keep_macs, keep_bytes"),
        ({"prune_channels": {"keep_macs": 0.5, "score": "wanda"}}, "Unknown channel score"),
        (
            {"prune": {"pattern": "channel", "score": "bn_scales", "end": 0.5}},
            "Did you mean 'bn_scale'",
        ),
        ({"cascade": {"stages": []}}, "stages.0.cascade needs `rounds`"),
        ({"cascades": {}}, "Unknown stage 'cascades'. Did you mean 'cascade'"),
        ({"trim": {"max_zero": 1}}, "Unknown key of stage 'trim'|Did you mean 'max_zeros'"),
    ],
)
def test_bad_recipes(stage, message):
    with pytest.raises(InputError, match=message):
        recipe.read(RECIPE | {"stages": [stage]})


RULES = [{"layers": "x", "skip": "y"}]


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"prune_channels": {"keep_macs": 0.001}}, "Stage 0 .*must be at least"),
        (
            {"prune_channels": {"keep_macs": 0.5, "rules": RULES}},
            "matches no",
        ),
        ({"prune_channels": {"keep_macs": 0.5, "per": "latencies"}}, "Did you mean 'latency'"),
        ({"prune": {"pattern": "channel", "end": 0.5, "rules": RULES}}, "matches no"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_before_training(stage, message, tmp_path):
    with pytest.raises(InputError, match=message):
        run_recipe(RECIPE | {"stages": [stage]}, tmp_path / "out", say=quiet)
    assert not (tmp_path / "out").exists()


def test_a_score_that_the_model_cannot_have_is_refused_before_training(tmp_path):
    stages = [{"fold_batch_norm": {}}, {"prune_channels": {"keep_macs": 0.5, "score": "bn_scale"}}]
    with pytest.raises(InputError, match="Stage 1 .*must have a BatchNormalization"):
        run_recipe(RECIPE | {"stages": stages}, tmp_path / "out", say=quiet)
    assert not (tmp_path / "out").exists()
