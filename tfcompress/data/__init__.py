"""Images and labels, from one word to batches: `load("digits")`, `load("npz:mnist.npz")`."""

from tfcompress.data.batches import Augment
from tfcompress.data.dataset import STANDARDIZATIONS, Data
from tfcompress.data.loading import load
from tfcompress.data.sources import SOURCES

__all__ = ["Augment", "Data", "SOURCES", "STANDARDIZATIONS", "load"]
