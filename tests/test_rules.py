import re
import types

import pytest

from tfcompress import rules
from tfcompress.errors import InputError

KERNELS = [
    types.SimpleNamespace(path=f"{layer}/kernel", layer_path=layer)
    for layer in ("conv1", "conv10", "encoder/dense", "head")
]


def resolve(*given):
    return rules.resolve(given, KERNELS, ["sparsity", "clusters"])


def test_the_last_matching_rule_wins_whole():
    resolved = resolve(
        {"layers": ".*", "sparsity": 0.5, "clusters": 4},
        {"layers": "conv1", "clusters": 8},
        {"layers": "head/kernel", "skip": "the head is small"},
    )
    assert resolved == {
        "conv1/kernel": {"clusters": 8},
        "conv10/kernel": {"sparsity": 0.5, "clusters": 4},
        "encoder/dense/kernel": {"sparsity": 0.5, "clusters": 4},
        "head/kernel": {"skip": "the head is small"},
    }


def test_kernels_without_a_rule_get_nothing():
    assert set(resolve()) == {kernel.path for kernel in KERNELS}
    assert resolve({"layers": "encoder/.*", "sparsity": 0.1})["head/kernel"] == {}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            {"layers": "conv", "clusters": 2},
            "matches no kernel: 'conv'. The nearest path is 'conv1",
        ),
        ({"layers": "encoder", "clusters": 2}, "The nearest path is 'encoder/dense'"),
        (
            {"layers": ".*", "cluster": 2},
            "Unknown key of rule 1 'cluster'. Did you mean 'clusters'",
        ),
        ({"layers": "(", "clusters": 2}, "must be a regular expression"),
        ({"clusters": 2}, "must say in `layers`"),
        ({"layers": ".*", "skip": ""}, "must be the reason"),
        ({"layers": ".*", "skip": True}, "must be the reason"),
        ({"layers": ".*", "skip": "small", "clusters": 2}, "must not ask for more"),
        ("conv1", "must be a mapping"),
    ],
)
def test_wrong_rules(rule, message):
    with pytest.raises(InputError, match=re.escape(message)):
        resolve(rule)


def test_rules_must_be_a_list():
    with pytest.raises(InputError, match="must be a list of mappings"):
        rules.resolve({"layers": ".*"}, KERNELS, [])
