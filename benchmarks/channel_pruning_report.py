"""Table and curve of the points of `channel_pruning.py`."""

import jsonl
import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402 - the backend is chosen before


def write(folder, baseline):
    """Prints the table, draws the curve; returns how many points the best headline lost, or None.

    baseline: the name of the row that the others are compared with.
    """
    rows = jsonl.read(folder / "results.jsonl")
    first = next(row for row in rows if row["name"] == baseline)
    print(
        f"\n{'':<52}{'epochs':>7}{'MACs':>12}{'fewer':>8}{'weights':>9}{'pruned':>9}"
        f"{'validation':>12}{'test':>9}{'lost':>7}"
    )
    for row in sorted(rows, key=lambda row: (row["stage"], row["score"], -row["macs"])):
        title = f"{row['stage']} {row['score']}" + (" distilled" if row["distill"] else "")
        title += "".join(f" {word}" for word in how(row))
        epochs, fewer = row["epochs"] * row["cycles"], first["macs"] / row["macs"]
        print(
            f"{title:<52}{epochs:>7}{row['macs']:>12,}{fewer:>7.2f}x"
            f"{row['parameters']:>9,}{row['pruned']:>8.2f}%{row['validation']:>11.2f}%"
            f"{row['test']:>8.2f}%{first['test'] - row['test']:>+7.2f}"
        )
    draw(rows, first, folder / "curve.png")
    lost = [first["test"] - row["test"] for row in rows if row["stage"] == "headline"]
    return min(lost, default=None)


def how(row):
    """Returns the words that tell the row from the plain one."""
    scope, per = row.get("scope", "global"), row.get("per")
    words = ([] if scope == "global" else [scope]) + ([f"per {per}"] if per else [])
    words += ["without layers"] if row.get("drop") else []
    teachers = "+".join(map(str, row.get("teacher") or [1]))
    words += [f"teachers {teachers}"] if row["distill"] and teachers != "1" else []
    return words + (["mixup"] if row.get("mixup") else [])


def draw(rows, baseline, path):
    """Draws test accuracy over MACs ratio, a line per score."""
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    axes.axhline(baseline["test"], color="black", linewidth=1, label="baseline")
    curve = [row for row in rows if row["stage"] == "curve"]
    for score in dict.fromkeys(row["score"] for row in curve if row["score"] != "none"):
        found = sorted(
            (baseline["macs"] / r["macs"], r["test"]) for r in curve if r["score"] == score
        )
        axes.plot(*zip(*found, strict=True), marker="o", markersize=4, label=score)
    for row in rows:
        if row["stage"] == "headline":
            label = f"{row['score']}, {row['epochs'] * row['cycles']} epochs"
            label += ", distilled" if row["distill"] else ""
            label += "".join(f", {word}" for word in how(row))
            axes.plot(baseline["macs"] / row["macs"], row["test"], "*", markersize=11, label=label)
    axes.set(xlabel="times fewer multiply-accumulates", ylabel="test accuracy, %")
    axes.set_title("ResNet-8, channels removed and fine-tuned, CIFAR-10 as JPEG files")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
