import time

import numpy as np
import pytest

from tfcompress.pruning import PATTERNS, Magnitude


@pytest.mark.parametrize("name", PATTERNS.names())
def test_time_grows_with_the_weights_not_faster(name):
    def seconds(size):
        kernel = np.random.default_rng(0).normal(size=(size // 512, 512)).astype(np.float32)
        pattern, times = PATTERNS.create(name), []
        for _ in range(3):
            begin = time.process_time()
            pattern.mask(Magnitude().score(kernel), 0.8 * pattern.max_sparsity)
            times.append(time.process_time() - begin)
        return min(times)

    assert seconds(4_096_000) < 20 * seconds(512_000)  # 8 times the weights; the rest is noise
