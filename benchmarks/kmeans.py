"""Clusters one large kernel by k-means: seconds, memory and error against the optimum.

    python benchmarks/kmeans.py [--weights 25000000] [--clusters 16 256] [--iterations 300 10]

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

scikit-learn runs with `n_init=1` and at most `--iterations` iterations for each number of clusters;
where these stop it early, its SSE would still fall and its time would grow. Each run has a process
of its own; memory is the process's peak above what it held before the kernel was made, kernel
included, over the kernel's bytes.
"""

import argparse
import multiprocessing
import time

import numpy as np

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


def ours(kernel: np.ndarray, clusters: int, iterations: int):
    from tfcompress.clustering import KMeans

    return KMeans(clusters).fit(kernel)


def scikit_learn(kernel: np.ndarray, clusters: int, iterations: int):
    from sklearn.cluster import KMeans

    return KMeans(clusters, n_init=1, max_iter=iterations, random_state=0).fit(kernel)


def measure(method, size: int, clusters: int, iterations: int, connection) -> None:
    """Sends seconds, peak memory over the kernel's bytes, SSE and scikit-learn's iterations."""
    method(make_kernel(20_000), 2, 2)  # imports and compiles
    before = memory_bytes("VmRSS")
    kernel = make_kernel(size)
    begin = time.perf_counter()
    result = method(kernel, clusters, iterations)
    seconds = time.perf_counter() - begin
    memory = (memory_bytes("VmHWM") - before) / kernel.nbytes
    if method is ours:
        connection.send((seconds, memory, result.sse(kernel), None))
    else:
        connection.send((seconds, memory, float(result.inertia_), result.n_iter_))


def in_own_process(method, size: int, clusters: int, iterations: int):
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(method, size, clusters, iterations, sender))
    process.start()
    sender.close()
    result = receiver.recv()
    process.join()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=int, default=25_000_000)
    parser.add_argument("--clusters", type=int, nargs="+", default=[16, 256])
    parser.add_argument("--iterations", type=int, nargs="+", default=[300, 10])
    options = parser.parse_args()
    print(f"{options.weights:,} weights, {4 * options.weights / 1e6:.0f} MB")
    print(
        f"{'clusters':>8}  {'method':<30}{'seconds':>9}{'memory':>9}{'excess SSE':>12}{'speed':>8}"
    )
    for clusters, iterations in zip(options.clusters, options.iterations, strict=True):
        bound, baseline = lower_bound(make_kernel(options.weights), clusters), None
        for method in (ours, scikit_learn):
            seconds, memory, sse, used = in_own_process(
                method, options.weights, clusters, iterations
            )
            baseline = baseline or seconds
            stopped = " (stopped)" if used == iterations else ""
            name = "tfcompress" if used is None else f"scikit-learn, {used} iterations{stopped}"
            print(
                f"{clusters:>8}  {name:<38}{seconds:>9.2f} s{memory:>7.2f} x"
                f"{100 * (sse / bound - 1):>10.4f} %{seconds / baseline:>7.0f} x",
                flush=True,
            )


if __name__ == "__main__":
    main()
