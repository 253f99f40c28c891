"""A small folder of images, as a user would have it."""

import numpy as np
from PIL import Image


def write_folder(root, parts=("train", "test"), size=(6, 5), mode="RGB"):
    generator = np.random.default_rng(1)
    for part in parts:
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for i in range(4):
                pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
                Image.fromarray(pixels).convert(mode).save(root / part / name / f"{i}.png")
    return f"images:{root}"
