"""Folders of images: `train/<class>/*.jpg|png`, `test/<class>/...`."""

import concurrent.futures
import dataclasses
import pathlib

import numpy as np
from PIL import Image

from tfcompress.errors import InputError

SUFFIXES = {".jpg", ".jpeg", ".png"}
GRAY_MODES = {"1", "L"}
# Up to here decoded images stay in memory; above, each batch is decoded when it is needed.
MEMORY_LIMIT_BYTES = 1 << 30


@dataclasses.dataclass(frozen=True)
class Decoder:
    """Decodes image files to uint8 (n, height, width, channels).

    With `resize` images are scaled (bilinear); without, each must have the shape as it is.
    """

    shape: tuple[int, int, int]
    resize: bool = False

    def __call__(self, paths: np.ndarray) -> np.ndarray:
        images = np.empty((len(paths), *self.shape), np.uint8)
        for row, path in zip(images, paths, strict=True):
            row[:] = self.decode(str(path))
        return images

    def decode(self, path: str) -> np.ndarray:
        """Returns the image of one file; an unreadable one is an `InputError` with its name."""
        height, width, channels = self.shape
        with _opened(path) as image:
            if channels == 1 and image.mode not in GRAY_MODES:
                raise InputError(f"Image {path} is coloured, but the first of the folder is gray.")
            image = _loaded(image, path).convert("L" if channels == 1 else "RGB")
            if image.size != (width, height):
                if not self.resize:
                    raise InputError(
                        f"Image {path} has another size than the first of the folder: give `size`. "
                        f"Received: {image.size[1]}x{image.size[0]}, first {height}x{width}"
                    )
                image = image.resize((width, height), Image.Resampling.BILINEAR)
            return np.asarray(image, np.uint8).reshape(self.shape)

    def stamps(self, paths: np.ndarray) -> str:
        """Returns sizes and times of the files: what tells that one was changed."""
        return repr([(s.st_size, s.st_mtime_ns) for s in map(pathlib.Path.stat, _as_paths(paths))])


def read_folder(folder: str, size: int | tuple[int, int] | None) -> dict:
    """Returns x_train, y_train, class_names, decoder and, where there is `test/`, x_test, y_test.

    Every image is decoded once here, so that an unreadable one is named before training.
    """
    root = pathlib.Path(folder)
    if not (root / "train").is_dir():
        raise InputError(f"images:{folder} must be a folder with train/<class>/*.jpg|png.")
    names = sorted(p.name for p in (root / "train").iterdir() if p.is_dir() and p.name[0] != ".")
    if not names:
        raise InputError(f"images:{folder}/train must hold one folder per class. Received: none")
    parts = {"train": _listed(root / "train", names)}
    if (root / "test").is_dir():
        parts["test"] = _listed(root / "test", names)
    decoder = _decoder(parts["train"][0][0], size)
    total = sum(len(paths) for paths, _ in parts.values())
    in_memory = total * int(np.prod(decoder.shape)) <= MEMORY_LIMIT_BYTES
    result: dict = {"class_names": names, "decoder": None if in_memory else decoder}
    for part, (paths, labels) in parts.items():
        result[f"x_{part}"] = _decode_all(paths, decoder, in_memory)
        result[f"y_{part}"] = labels
    return result


def _listed(folder: pathlib.Path, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the paths and labels of `folder/<class>/*`, sorted."""
    strange = [p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != "."]
    for name in sorted(set(strange) - set(names)):
        raise InputError(f"Class '{name}' of {folder} is not a class of the training images.")
    paths, labels = [], []
    for label, name in enumerate(names):
        directory = folder / name
        found = sorted(directory.iterdir()) if directory.is_dir() else []
        for path in found:
            if path.suffix.lower() in SUFFIXES and path.name[0] != ".":
                paths.append(str(path))
                labels.append(label)
        if folder.name == "train" and (not labels or labels[-1] != label):
            raise InputError(f"Folder {directory} must hold .jpg or .png images. Received: none")
    if not paths:
        raise InputError(f"Folder {folder} must hold .jpg or .png images. Received: none")
    return np.array(paths), np.array(labels, np.int32)


def _decoder(first: str, size: int | tuple[int, int] | None) -> Decoder:
    with _opened(str(first)) as image:
        width, height = image.size
        channels = 1 if image.mode in GRAY_MODES else 3
    if size is None:
        return Decoder((height, width, channels))
    height, width = (size, size) if isinstance(size, int) else size
    return Decoder((height, width, channels), resize=True)


def _decode_all(paths: np.ndarray, decoder: Decoder, keep: bool) -> np.ndarray:
    """Returns the decoded images, or the paths when `keep` is false; either way all were read."""
    images = np.empty((len(paths) if keep else 0, *decoder.shape), np.uint8)

    def read(index: int) -> None:
        image = decoder.decode(str(paths[index]))
        if keep:
            images[index] = image

    # Threads: PIL leaves the interpreter's lock while it decodes.
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in pool.map(read, range(len(paths)), chunksize=64):
            pass
    return images if keep else paths


def _opened(path: str) -> Image.Image:
    try:
        return Image.open(path)
    except (OSError, Image.DecompressionBombError) as error:
        raise InputError(f"Image {path} is unreadable ({type(error).__name__}).") from error


def _loaded(image: Image.Image, path: str) -> Image.Image:
    try:
        image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"Image {path} is unreadable ({error}).") from error
    return image


def _as_paths(paths: np.ndarray) -> list[pathlib.Path]:
    return [pathlib.Path(str(path)) for path in paths]
