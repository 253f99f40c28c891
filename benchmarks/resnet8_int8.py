"""Post-training int8 of MLPerf Tiny's ResNet-8: bytes, and points lost on CIFAR-10 as JPEG files.

    python benchmarks/resnet8_int8.py --model mlperf_tiny_resnet8.h5 --data cifar10-jpeg.tar.gz

The model and its int8 file see the same 10,000 test images; the ranges come from 500 training
images. (The model was trained on uncompressed images: its accuracy on JPEG files is lower than
published, for float and int8 alike.) Exits with 1 if the file is larger than MLPerf Tiny's own
(98,496 bytes) or loses more than 0.3 points.
"""

import argparse
import pathlib
import tarfile
import tempfile

import numpy as np

import tfcompress as tfc
from tfcompress import data, models, tflite

LARGEST = 98_496
MOST_POINTS_LOST = 0.3


def main(arguments=None):
    options = _parse(arguments)
    with tempfile.TemporaryDirectory() as folder:
        images = data.load(f"images:{unpacked(options.data, folder)}", standardize="none")
        model = models.load(options.model)
        samples = images.samples(options.samples, seed=options.seed)
        content = tfc.convert(model, scheme="int8", samples=samples)
        x, y = images.prepare(images.x_test), images.y_test
    audit = tfc.audit(content)
    in_float = 100 * np.mean(model.predict(x, batch_size=256, verbose=0).argmax(-1) == y)
    in_int8 = 100 * np.mean(tflite.run_integers(content, x).argmax(-1) == y)
    same = 100 * tflite.compare(model, content, x[:1000]).agreement
    print(audit)
    print(f"\n{len(y):,} test images, ranges from {len(samples)} training images")
    print(f"float     {in_float:.2f} %")
    print(f"int8      {in_int8:.2f} %  ({in_float - in_int8:+.2f} points lost, limit 0.3)")
    print(f"the same prediction on the first 1,000: {same:.1f} %")
    print(f"bytes     {len(content):,}  (limit {LARGEST:,})")
    passed = (
        in_float - in_int8 <= MOST_POINTS_LOST and len(content) <= LARGEST and audit.full_integer
    )
    return int(not passed)


def unpacked(source, folder):
    """Returns the folder of images: `source` itself, or the archive unpacked into `folder`."""
    if source.is_dir():
        return source
    with tarfile.open(source) as archive:
        archive.extractall(folder, filter="data")
    parents = [path.parent for path in pathlib.Path(folder).rglob("train") if path.is_dir()]
    return min(parents, key=lambda path: len(path.parts))


def _parse(arguments):
    shared = pathlib.Path(__file__).resolve().parents[2] / "shared"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=shared / "models" / "mlperf_tiny_resnet8.h5")
    parser.add_argument(
        "--data", type=pathlib.Path, default=shared / "data" / "cifar10-jpeg.tar.gz"
    )
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
