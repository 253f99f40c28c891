"""Clusters kernels by k-means: seconds, memory and error against the optimum.

    python benchmarks/kmeans.py [--weights 25000000] [--clusters 16 256]
    python benchmarks/kmeans.py --weights 10000 100000 1000000 10000000 --clusters 16
    python benchmarks/kmeans.py --weights 100000 1000000 --clusters 16 --starts 20

The second command shows how time grows with the number of weights. In the third scikit-learn starts
again and again, each time until nothing changes any more, until its SSE is within `--excess` of
ours: the time for the same result.

The kernel is a mix of normal and Laplace weights. The sum of squared errors (SSE) of
`tfcompress.clustering.KMeans` and of scikit-learn's `KMeans` is divided by a lower bound of the
optimum, so that the excess shown is at least the true one:

  Cut the line into B bins; bin b holds n_b weights with mean m_b and error W_b around it. Let C be
  the optimal centroids. A bin whose weights all go to one centroid c costs n_b (m_b - c)^2 + W_b.
  At most k - 1 bins are cut by a border; there each weight x is at a distance of at least
  d_b - |x - m_b| from C, with d_b that of m_b, so that the bin costs at least
  n_b d_b^2 - 2 d_b sqrt(n_b W_b). With S the optimum for the means alone (found exactly by dynamic
  programming), W the sum of all W_b and T that of the k - 1 largest, Cauchy's inequality gives
      optimum >= S + W - T - 2 sqrt(S T).

scikit-learn runs with `n_init=1`; `--init` and `--iterations` (at most) are per number of
clusters. Where these stop it early, its SSE would still fall and its time would grow; "random"
saves it the long k-means++ start. Both SSE are computed in float64 from the centroids and indices:
scikit-learn's own `inertia_` is added up in float32, too coarse for a kernel of this size. Each run
has a process of its own; memory is its peak above what it held before the kernel was made, kernel
included, over the kernel's bytes.
"""

import argparse
import itertools
import multiprocessing
import time

import numpy as np

from tfcompress.clustering import Codebook

BINS = 1 << 18


def make_kernel(size: int) -> np.ndarray:
    """Returns float32 weights (size, 1), made in parts so that nothing larger is ever held."""
    generator = np.random.default_rng(0)
    kernel = np.empty((size, 1), np.float32)
    for begin in range(0, size, 1 << 20):
        part = kernel[begin : begin + (1 << 20), 0]
        half = len(part) // 2
        part[:half] = generator.normal(0, 0.05, half)
        part[half:] = generator.laplace(0, 0.02, len(part) - half)
    return kernel


def lower_bound(kernel: np.ndarray, clusters: int) -> float:
    """Returns what no k-means of the kernel can go below (see above)."""
    from tfcompress.clustering import scalar

    low, high = float(kernel.min()), float(kernel.max())
    count, first, second = np.zeros(BINS), np.zeros(BINS), np.zeros(BINS)
    for begin in range(0, len(kernel), 1 << 20):
        x = kernel[begin : begin + (1 << 20), 0].astype(np.float64)
        which = np.minimum(((x - low) * (BINS / (high - low))).astype(int), BINS - 1)
        count += np.bincount(which, minlength=BINS)
        first += np.bincount(which, x, minlength=BINS)
        second += np.bincount(which, x**2, minlength=BINS)
    count, first, second = (sums[count > 0] for sums in (count, first, second))
    means = first / count
    within = np.maximum(second - first * means, 0)
    begins = scalar.optimal_begins(
        *(np.append(0.0, np.cumsum(count * means**power)) for power in range(3)), clusters
    )
    moments = [np.add.reduceat(count * means**power, begins) for power in range(3)]
    best = float((moments[2] - moments[1] ** 2 / moments[0]).sum())
    cut = float(np.sort(within)[-(clusters - 1) :].sum())
    return best + float(within.sum()) - cut - 2 * (best * cut) ** 0.5


def memory_bytes(field: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


def ours(kernel: np.ndarray, clusters: int):
    from tfcompress.clustering import KMeans

    return KMeans(clusters).fit(kernel), ""


def scikit_learn(kernel: np.ndarray, clusters: int, init: str, iterations: int, tol=1e-4, seed=0):
    from sklearn.cluster import KMeans

    settings = {"n_init": 1, "max_iter": iterations, "tol": tol, "random_state": seed}
    found = KMeans(clusters, init=init, **settings).fit(kernel)
    stopped = ", stopped" if found.n_iter_ == iterations else ""
    codebook = Codebook(found.cluster_centers_, found.labels_)
    return codebook, f"{init}, {found.n_iter_} iterations{stopped}"


def scikit_learn_until(
    kernel: np.ndarray, clusters: int, init: str, iterations: int, starts: int, wanted: float
):
    """Starts anew until the SSE is the wanted one; returns the best that was found."""
    best, least = None, np.inf
    for seed in range(starts):
        found, _ = scikit_learn(kernel, clusters, init, iterations, tol=0.0, seed=seed)
        sse = found.sse(kernel)
        best, least = (found, sse) if sse < least else (best, least)
        if least <= wanted:
            break
    reached = "" if least <= wanted else ", not reached"
    return best, f"{init}, {seed + 1} starts{reached}"


def measure(connection, method, size: int, *arguments) -> None:
    """Sends seconds, peak memory over the kernel's bytes, SSE and what else is to be told."""
    # Imports and compiles; a large kernel needs one that is large enough to go the same way.
    small = make_kernel(min(size, 2_200_000))
    ours(small, 2) if method is ours else scikit_learn(small, 2, "random", 2)
    before = memory_bytes("VmRSS")
    kernel = make_kernel(size)
    begin = time.perf_counter()
    codebook, told = method(kernel, *arguments)
    seconds = time.perf_counter() - begin
    memory = (memory_bytes("VmHWM") - before) / kernel.nbytes
    connection.send((seconds, memory, codebook.sse(kernel), told))


def in_own_process(*arguments):
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(sender, *arguments))
    process.start()
    sender.close()
    result = receiver.recv()
    process.join()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=int, nargs="+", default=[25_000_000])
    parser.add_argument("--clusters", type=int, nargs="+", default=[16, 256])
    parser.add_argument("--init", nargs="+", default=["k-means++", "random"])
    parser.add_argument("--iterations", type=int, nargs="+", default=[300, 5])
    parser.add_argument("--starts", type=int, help="scikit-learn's, until it is as good")
    parser.add_argument("--excess", type=float, default=0.001, help="of our SSE: as good")
    options = parser.parse_args()
    print(
        f"{'weights':>12}{'clusters':>9}  {'method':<52}{'seconds':>10}{'memory':>9}"
        f"{'excess SSE':>13}{'time':>8}"
    )
    count = len(options.clusters)
    settings = zip(options.clusters, options.init[:count], options.iterations[:count], strict=True)
    for size, (clusters, *arguments) in itertools.product(options.weights, settings):
        bound = lower_bound(make_kernel(size), clusters)
        seconds, memory, sse, _ = in_own_process(ours, size, clusters)
        row(size, clusters, "tfcompress", seconds, memory, sse / bound, 1.0)
        method = scikit_learn
        if options.starts:
            method = scikit_learn_until
            arguments += [options.starts, (1 + options.excess) * sse]
        theirs, memory, sse, told = in_own_process(method, size, clusters, *arguments)
        name = f"scikit-learn, {told}"
        row(size, clusters, name, theirs, memory, sse / bound, theirs / seconds)


def row(size, clusters, name, seconds, memory, over_bound, over_ours):
    print(
        f"{size:>12,}{clusters:>9}  {name:<52}{seconds:>10.4f}{memory:>7.2f} x"
        f"{100 * (over_bound - 1):>11.4f} %{over_ours:>6.0f} x",
        flush=True,
    )


if __name__ == "__main__":
    main()
