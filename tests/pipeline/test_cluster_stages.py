"""Recipes that cluster, after training and while it goes on: what their exported files hold."""

import keras
import numpy as np
import pytest

from tfcompress import recipe, tflite
from tfcompress.errors import InputError
from tfcompress.pipeline import run_recipe
from tfcompress.weights import to_blocks

from . import tiny
from .test_run import interrupted, quiet


def plan(*stages, scheme="float32"):
    return tiny.RECIPE | {
        "data": tiny.RECIPE["data"] | {"augment": {}, "batch_size": 40},
        "stages": list(stages),
        "export": {"scheme": scheme, "samples": 20},
        "check": {"runs": 0, "max_accuracy_drop": None},
    }


def stored(result):
    """The kernels of the exported file as Keras has them: convolution, then head."""
    conv, head = (values for _, values in tflite.stored_kernels(result.output / "model.tflite"))
    return conv.transpose(1, 2, 3, 0), head.T


def test_codes_of_both_stages_are_those_of_the_file_when_a_killed_run_goes_on(tmp_path):
    once = {"clusters": 6, "grid": "int8", "rules": [{"layers": "head", "skip": "trained"}]}
    trained = {"clusters": 5, "grid": "int8", "rules": [{"layers": "conv", "skip": "done"}]}
    todo = plan({"cluster_once": once}, {"cluster": trained | {"epochs": 1}}, scheme="int8")
    interrupted(tmp_path, "stage 2", todo)
    lines = []
    result = run_recipe(todo, tmp_path, say=lines.append)
    assert sum("done before" in line for line in lines) == 1
    assert not any(isinstance(a, keras.layers.BatchNormalization) for a in result.model.layers)
    codes = stored(result)
    assert [w.dtype for w in codes] == [np.int8, np.int8]
    assert [len(np.unique(w)) for w in codes] == [6, 5]
    assert [s["skipped"] for s in result.record["stages"]] == [
        {"head/kernel": "trained"}, {"conv/kernel": "done"}
    ]  # fmt: skip


def test_what_both_stages_are_told_is_what_the_file_holds(tmp_path):
    skip_head, skip_conv = ([{"layers": name, "skip": "x"}] for name in ("head", "conv"))
    budget = {"method": "hierarchical", "max_error": 0.02, "rules": skip_head}
    channels = {"clusters": 5, "per": "channel", "importance": "fisher", "rules": skip_conv}
    levels = {"clusters": 3, "block": [2, 1], "levels": 2, "gradients": "sum", "update_every": 2}
    trained = levels | {"epochs": 1, "learning_rate": 1e-4, "rules": skip_head}
    stages = {"cluster_once": budget}, {"cluster_once": channels}, {"cluster": trained}
    result = run_recipe(plan({"fold_batch_norm": {}}, *stages), tmp_path, say=quiet)
    before, after = (
        keras.models.load_model(tmp_path / "stages" / name / "model.keras", compile=False)
        for name in ("0-fold_batch_norm", "1-cluster_once")
    )
    old, new = (np.asarray(model.get_layer("conv").kernel) for model in (before, after))
    assert 0 < ((old - new) ** 2).sum() <= 0.02 * (old**2).sum()
    np.testing.assert_array_equal(before.get_layer("head").kernel, after.get_layer("head").kernel)
    conv, head = stored(result)
    # The convolution's 9 x 6 matrix ends within a block: its last row is half of one.
    assert len(np.unique(to_blocks(conv, (2, 1))[:-6], axis=0)) <= 9 < len(np.unique(conv))
    assert [len(np.unique(column)) for column in head.T] == [5] * 4 and len(np.unique(head)) == 20
    history = result.record["stages"][3]["history"]
    assert len(history["empty_clusters"]) == 1 and history["cluster_seconds"][0] > 0


@pytest.mark.parametrize("words", [{"levels": 2}, {"gradients": "root"}], ids=str)
def test_a_killed_stage_of_fixed_clusters_ends_as_an_undisturbed_one(tmp_path, words):
    todo = plan({"cluster": {"clusters": 3, "epochs": 12} | words})
    whole = run_recipe(todo, tmp_path / "whole", say=quiet)
    for at in ("cluster  3/12", "cluster  8/12", "cluster 10/12"):
        interrupted(tmp_path / "killed", at, todo)
    resumed = run_recipe(todo, tmp_path / "killed", say=quiet)
    for one, other in zip(stored(whole), stored(resumed), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_killed_stage_of_dynamic_clusters_ends_as_an_undisturbed_one(tmp_path):
    gmm = {"gmm": {"clusters": 3}}
    rules = [
        {"layers": "conv", "method": gmm, "block": [2, 1]},
        {"layers": "head", "clusters": 2, "levels": 2},
    ]
    todo = plan({"cluster": {"epochs": 3, "update_every": 3, "rules": rules}})
    whole = run_recipe(todo, tmp_path / "whole", say=quiet)
    for at in ("cluster 1/3", "cluster 2/3"):
        interrupted(tmp_path / "killed", at, todo)
    resumed = run_recipe(todo, tmp_path / "killed", say=quiet)
    for one, other in zip(stored(whole), stored(resumed), strict=True):
        np.testing.assert_array_equal(one, other)


G = {"group": "g"}


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"cluster_once": {"clusters": 1}}, "clusters of KMeans must be .*clusters=1"),
        ({"cluster_once": {"clusters": 99}}, "conv/kernel must not be more than its 54 weights"),
        ({"cluster_once": {"max_bytes": 900.0, "clusters": 8}}, "one of max_bytes and max_error"),
        ({"cluster_once": {"grid": "int8", "levels": 2}}, "goes with block"),
        ({"cluster_once": {"grid": "int8", "importance": "fisher"}}, "BatchNorm is folded"),
        ({"cluster_once": {"rules": [{"layers": "no", "skip": "x"}]}}, "matches no kernel"),
        (
            {
                "cluster_once": {
                    "rules": [G | {"layers": "conv", "clusters": 3}, G | {"layers": "head"}]
                }
            },
            "Kernels of group g must have the same method",
        ),
        ({"cluster_once": {"block": [1, 9]}}, "block for conv/kernel must not be larger"),
        ({"cluster": {"per": "model"}}, "per of ClusterOnSchedule must be 'kernel' or 'channel'"),
        ({"cluster": {"grid": "int8", "clusters": 8}}, "BatchNorm is folded"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(stage, message, tmp_path):
    with pytest.raises(InputError, match=f"Stage 0.*{message}") as caught:
        run_recipe(plan(stage), tmp_path / "out", say=quiet)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"importance": "fischer"}, "Did you mean 'fisher'"),
        ({"method": "k-means"}, "Did you mean 'kmeans'"),
        ({"cluster": 3}, "Unknown key of stage 'cluster_once' 'cluster'. Did you mean 'clusters'"),
        ({"max_error": 2.0}, "max_error"),
    ],
)
def test_bad_words_of_the_stage(words, message):
    with pytest.raises(InputError, match=message):
        recipe.read(plan({"cluster_once": words}))


def test_the_stage_is_read_with_its_defaults_and_read_again():
    read = recipe.read(plan({"cluster_once": {"clusters": "auto", "block": [1, 4]}}))
    (stage,) = read.stages
    assert stage.words() == {
        "method": {
            "kmeans": {"clusters": 16, "seed": 0, "max_iterations": 300, "criterion": "knee"}
        },
        "clusters": "auto",
        "block": [1, 4],
        "levels": 1,
        "per": "kernel",
        "keep_zeros": True,
        "importance": None,
        "rules": [],
        "max_bytes": None,
        "max_error": None,
        "grid": None,
    }
    assert recipe.read(read.to_dict()) == read
