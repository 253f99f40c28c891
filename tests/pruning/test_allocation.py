import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from tfcompress.errors import InputError
from tfcompress.pruning import Unstructured, allocate

KERNEL = arrays(
    np.float32,
    array_shapes(min_dims=1, max_dims=3, max_side=6),
    elements=st.integers(0, 9).map(float),
)


@given(kernels=st.lists(KERNEL, min_size=1, max_size=4), sparsity=st.floats(0, 0.999))
def test_the_masks_are_those_of_one_threshold(kernels, sparsity):
    scores = {f"layer{i}/kernel": kernel for i, kernel in enumerate(kernels)}
    shares = allocate(scores, sparsity)
    masks = {path: Unstructured().mask(scores[path], shares[path]) for path in scores}
    total = sum(mask.size for mask in masks.values())
    zeros = sum(np.count_nonzero(~mask) for mask in masks.values())
    assert zeros == min(round(sparsity * total), total - len(scores))
    assert all(mask.any() for mask in masks.values())
    gone = [scores[path][~masks[path]].max() for path in scores if not masks[path].all()]
    # A kernel's last weight stays whatever its score.
    stay = [scores[path][masks[path]].min() for path in scores if masks[path].sum() > 1]
    if gone and stay:
        assert max(gone) <= min(stay)


def test_inputs_stay_as_they_are():
    scores = {"a": np.arange(4.0), "b": np.arange(2.0)}
    assert allocate(scores, 0.5) == {"a": 0.5, "b": 0.5}
    np.testing.assert_array_equal(scores["a"], np.arange(4.0))


def test_wrong_input():
    with pytest.raises(InputError, match="sparsity of allocate"):
        allocate({"a": np.ones(3)}, 1.0)
    with pytest.raises(InputError, match="scores of allocate must not be empty"):
        allocate({}, 0.5)
