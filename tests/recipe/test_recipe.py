import pathlib

import pytest
import yaml

from tfcompress import recipe
from tfcompress.errors import InputError

CONFIGS = sorted((pathlib.Path(__file__).parents[2] / "configs").glob("*.yaml"))

SMALL = {
    "model": "digits_cnn",
    "data": "digits",
    "stages": [
        {"train": {"epochs": 2}},
        {"prune": {"end": 0.8, "begin_step": 3}},
        {"cluster": {"method": "kmeans", "clusters": 16}},
        {"quantize_aware": None},
    ],
}


def with_stage(stage):
    return SMALL | {"stages": [stage]}


def test_keys_that_a_stage_does_not_know_go_to_its_method():
    resolved = recipe.read(SMALL)
    _, prune, cluster, _ = resolved.stages
    assert prune.schedule["polynomial"]["end"] == 0.8
    assert prune.schedule["polynomial"]["begin_step"] == 3
    assert cluster.method["kmeans"]["clusters"] == 16
    block = recipe.read(with_stage({"prune": {"end": 0.5, "pattern": "block", "block": [1, 2]}}))
    assert list(block.stages[0].pattern["block"]["block"]) == [1, 2]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_are_valid_and_named_after_their_file(path):
    assert recipe.read(path).name == path.stem


@pytest.mark.parametrize("source", [SMALL, *CONFIGS], ids=lambda s: getattr(s, "stem", "small"))
def test_the_resolved_recipe_is_a_recipe_and_resolves_to_itself(source, tmp_path):
    first = recipe.read(source)
    file = tmp_path / "recipe.yaml"
    file.write_text(first.to_yaml())
    second = recipe.read(file)
    assert second == first and second.to_yaml() == first.to_yaml()
    assert recipe.read(first) == first


def test_design_shape_of_data_and_model():
    resolved = recipe.read(
        SMALL | {"model": {"keras": "a.keras"}, "data": {"npz": "b.npz", "validation": 0.2}}
    )
    assert resolved.model == "a.keras"
    assert resolved.data.source == "npz:b.npz" and resolved.data.validation == 0.2
    wide = recipe.read(SMALL | {"model": {"mobilenet": {"width": 0.25}}})
    assert wide.model == "mobilenet:0.25"


def test_yaml_reads_scientific_numbers(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(
        "model: a\ndata: digits\nstages: [train: {learning_rate: 1e-3, optimizer: {sgd: "
        "{momentum: 0.9, nesterov: true}}}]\n"
    )
    assert recipe.read(file).stages[0].learning_rate == 0.001


def test_overrides():
    resolved = recipe.read(
        SMALL,
        overrides=[
            "stages.2.cluster.clusters=32",
            "stages.1.prune.schedule.polynomial.power=3.0",
            "data.augment={shift: 1}",
            "data.batch_size=64",
            "stages.3.quantize_aware.epochs=1",
            "check.max_accuracy_drop=null",
            "stages.0.train.learning_rate=1e-2",
            "seed=4",
        ],
    )
    train, prune, cluster, quantize = resolved.stages
    assert cluster.method["kmeans"]["clusters"] == 32
    assert prune.schedule["polynomial"]["power"] == 3.0
    assert resolved.data.augment.shift == 1 and resolved.data.batch_size == 64
    assert quantize.epochs == 1 and train.learning_rate == 0.01 and resolved.seed == 4
    assert resolved.check.max_accuracy_drop is None


def test_data_and_model_replace_the_source_only():
    keys = SMALL | {"data": {"source": "digits", "validation": 0.3}}
    resolved = recipe.read(keys, data="npz:x.npz", model="lenet5")
    assert resolved.data.source == "npz:x.npz" and resolved.data.validation == 0.3
    assert resolved.model == "lenet5"


def test_an_override_beats_a_resolved_recipe():
    resolved = recipe.read(SMALL)
    again = recipe.read(resolved, overrides=["stages.2.cluster.clusters=8"])
    assert again.stages[2].method["kmeans"]["clusters"] == 8


BAD = {
    "Did you mean 'stages'": {"stagse": []},
    "needs `model`": {"model": None},
    "the recipe needs `data.source`": {"data": {}},
    "Unknown stage 'clutser'. Did you mean 'cluster'": {"stages": [{"clutser": {}}]},
    "Unknown key of stage 'cluster' 'clusterz'. Did you mean 'clusters'": {
        "stages": [{"cluster": {"clusterz": 3}}]
    },
    "Unknown clustering method 'kmean'. Did you mean 'kmeans'": {
        "stages": [{"cluster": {"method": "kmean"}}]
    },
    "Did you mean 'magnitude'": {"stages": [{"prune": {"end": 0.5, "score": "magnitud"}}]},
    "needs end": {"stages": [{"prune": {}}]},
    "[0, 1). Received: end=1.0": {"stages": [{"prune": {"end": 1.0}}]},
    "[2, 65536] or 'auto'. Received: clusters=1": {"stages": [{"cluster": {"clusters": 1}}]},
    "Did you mean 'int8'": {"stages": [{"quantize_aware": {"scheme": "int88"}}]},
    "Unknown scheme of export": {"export": {"scheme": "int9"}},
    "Unknown rounding": {"export": {"rounding": "adround"}},
    "finds no integers": {"export": {"scheme": "float16", "ranges": "mse"}},
    "Did you mean 'mse'": {"stages": [{"correct_bias": {"ranges": "msee"}}]},
    "`bits` of stages.0.correct_bias": {"stages": [{"correct_bias": {"bits": 1}}]},
    "`epochs` of stages.0.train must be greater than or equal to 1. Received: 0": {
        "stages": [{"train": {"epochs": 0}}]
    },
    "`epochs` of stages.0.train must be a valid integer. Received: 'three'": {
        "stages": [{"train": {"epochs": "three"}}]
    },
    "Unknown optimizer 'adm'. Did you mean 'adam'": {"stages": [{"train": {"optimizer": "adm"}}]},
    "Did you mean 'momentum'": {"stages": [{"train": {"optimizer": {"sgd": {"momentun": 1}}}}]},
    "key of the stage": {"stages": [{"train": {"optimizer": {"sgd": {"learning_rate": 1}}}}]},
    "one way only": {"stages": [{"train": {"clipnorm": 1.0, "clipvalue": 1.0}}]},
    "less than its 10 epochs": {"stages": [{"train": {"warmup_epochs": 10}}]},
    "Did you mean 'cosine'": {"stages": [{"train": {"learning_rate_schedule": "cosin"}}]},
    "Did you mean 'shift'": {"data": {"source": "digits", "augment": {"shfit": 1}}},
    "shift=-1": {"data": {"source": "digits", "augment": {"shift": -1}}},
    "Did you mean 'standard'": {"data": {"source": "digits", "standardize": "standrad"}},
    "`data.validation` of the recipe must be less than 1. Received: 1.5": {
        "data": {"source": "digits", "validation": 1.5}
    },
    "needs runs of at least 1": {"check": {"runs": 0, "max_latency_ms": 1.0}},
    "must be a list": {"stages": {"train": {}}},
    "one stage name": {"stages": [{"train": {}, "prune": {}}]},
    "must be a mapping of keys": {"stages": [{"train": 3}]},
    "mapping with one key": {"model": {"keras": 3}},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_recipes_are_one_line(message):
    values = {key: value for key, value in (SMALL | BAD[message]).items() if value is not None}
    with pytest.raises(InputError) as caught:
        recipe.read(values)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_bad_overrides():
    for override, message in {
        "stages.1.clutser.clusters=3": "'clutser'",
        "stages.2.cluster.clusterz=3": "Did you mean 'clusters'",
        "stages.9.train.epochs=3": "0 to 3",
        "stages.first.train.epochs=3": "'first'",
        "sead=3": "Did you mean 'seed'",
        "check.max_acuracy_drop=3": "Did you mean 'max_accuracy_drop'",
        "seed": "KEY=VALUE",
        "seed=[1": "not YAML",
        "seed=x": "`seed` of the recipe must be a valid integer",
    }.items():
        with pytest.raises(InputError) as caught:
            recipe.read(SMALL, overrides=[override])
        assert message in str(caught.value), override


def test_bad_files(tmp_path):
    file = tmp_path / "r.yaml"
    for text, message in {
        "a: [1": "not YAML",
        "- a": "must be a mapping",
        "": "must be a mapping",
        "seed: 1\nseed: 2": "given twice",
    }.items():
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            recipe.read(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="Recipe"):
        recipe.read(file)
    with pytest.raises(InputError, match="cannot be read"):
        recipe.read(tmp_path / "missing.yaml")


def test_to_yaml_is_plain():
    assert yaml.safe_load(recipe.read(SMALL).to_yaml()) == recipe.read(SMALL).to_dict()
