"""Changes of structure: a model in, a smaller or simpler model out."""

from tfcompress.structured.fold import fold_batch_norm as fold_batch_norm
