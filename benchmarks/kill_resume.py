"""Kills the demo at random moments with SIGKILL, lets it finish, compares every bit.

    python benchmarks/kill_resume.py [--recipe configs/digits.yaml] [--kills 10] [--seed 0]

For each moment (uniform over the time of an undisturbed run, from a fixed seed) a fresh run is
killed there, then the same command is given again. Its final weights (all arrays in model.keras)
and model.tflite must be those of the undisturbed run, to the bit. Takes about 15 minutes for ten
kills on 2 cores. Exit status 1 if a bit differs.
"""

import argparse
import hashlib
import io
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile

import h5py

ROOT = pathlib.Path(__file__).resolve().parents[1]


def command(recipe: str, output: pathlib.Path, settings: list[str]) -> list[str]:
    words = [sys.executable, "-m", "tfcompress.compress", recipe, "--output", str(output)]
    return words + [f"--set={setting}" for setting in settings]


def run(words: list[str], kill_after: float | None = None) -> tuple[int, float, str]:
    """Returns exit status, seconds and the last line of progress."""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=log)
        try:
            process.wait(kill_after)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.seek(0)
        lines = log.read().decode(errors="replace").strip().splitlines()
    return process.returncode, time.perf_counter() - started, lines[-1] if lines else ""


def weights_hash(path: pathlib.Path) -> str:
    """Returns the hash of every array in a .keras file, by name (the file itself has a date)."""
    digest = hashlib.sha256()
    with zipfile.ZipFile(path) as archive:
        content = archive.read("model.weights.h5")

    def add(name, item):
        if isinstance(item, h5py.Dataset):
            digest.update(name.encode() + item[()].tobytes())

    with h5py.File(io.BytesIO(content)) as file:
        file.visititems(add)
    return digest.hexdigest()


def hashes(folder: pathlib.Path) -> tuple[str, str]:
    tflite = hashlib.sha256((folder / "model.tflite").read_bytes()).hexdigest()
    return weights_hash(folder / "model.keras"), tflite


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="configs/digits.yaml")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE of the recipe")
    options = parser.parse_args()
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole = pathlib.Path(folder) / "undisturbed"
        status, seconds, last = run(command(options.recipe, whole, options.set))
        if status not in (0, 1):
            print(f"the undisturbed run failed with status {status}: {last}")
            return 1
        expected = hashes(whole)
        print(f"undisturbed: {seconds:.1f} s, status {status}")
        print(f"{'kill':>4} {'after':>8}  {'killed at':<46} {'resumed':>8}  weights  model.tflite")
        wrong = 0
        for number in range(1, options.kills + 1):
            output = pathlib.Path(folder) / f"killed{number}"
            words = command(options.recipe, output, options.set)
            moment = moments.uniform(0, seconds)
            killed, lasted, last = run(words, moment)
            while killed >= 0:  # it was faster than the undisturbed run: the same share of it
                shutil.rmtree(output)
                moment *= lasted / seconds
                killed, lasted, last = run(words, moment)
            place = last[:46] or "starting"
            again, rest, _ = run(words)
            same = [a == b for a, b in zip(hashes(output), expected, strict=True)]
            wrong += again != status or not all(same)
            equal = ["equal" if s else "DIFFER" for s in same]
            print(
                f"{number:>4} {moment:>6.1f} s  {place:<46} {rest:>6.1f} s  {equal[0]:<7}  "
                f"{equal[1]}",
                flush=True,
            )
    print("every bit is the same" if not wrong else f"{wrong} of {options.kills} runs differ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
