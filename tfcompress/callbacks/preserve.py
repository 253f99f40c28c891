"""Training that keeps what compression has made."""

from tfcompress import projection
from tfcompress.callbacks.kernel_callback import KernelCallback
from tfcompress.weights import kernels


class Preserve(KernelCallback):
    """Keeps the zeros and the shared values of each kernel while the model trains.

    What is kept is read from the weights when training starts: each weight that is exactly zero,
    and, in a kernel at least half of whose weights repeat another's value, which ones are equal.
    Use it to train a pruned or clustered model further, for instance after loading it.

    Example:

        sparse = keras.models.load_model("sparse.keras")
        sparse.fit(x, y, callbacks=[tfc.Preserve()])
    """

    def select(self):
        return kernels(self.model)

    def update(self, previous_step, step):
        if previous_step is None:
            projection.preserve(self.model)
