"""The table of real runs in docs/likelihood.md, from the files of finished runs.

    python benchmarks/real_runs.py runs/vp_digits_likelihood runs/vp_fashion_mnist_likelihood

Each run must be trained, and evaluated with --mode=evaluate and --mode=likelihood. Training time and images/s cover the
steps that metrics.jsonl logs. "FD" is the Fréchet distance in the features of the small classifier.
"""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.report import show
from score_sde.evaluation.results import load_results


def row(folder: Path) -> dict[str, Any]:
    """Return the row of a run."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    config = json.loads((folder / "config.json").read_text())
    figures = load_results(folder)
    number = figures["num_samples"]
    seconds = _seconds(records)
    images = figures["step"] * config["training"]["batch_size"]
    overlap = figures[f"overlap_classifier_{number}"]
    bits = figures["likelihood"]["bits_per_dim"]
    return {
        "run": folder.name,
        "steps": figures["step"],
        "training h": seconds / 3600,
        "images/s": images / seconds,
        "bits/dim": f"{bits['mean']:.3f} ± {bits['standard_error']:.3f}",
        "histograms": figures["likelihood"]["histograms_bits_per_dim"],
        "FD": figures[f"fd_classifier_{number}"]["mean"],
        "FD test/train": figures["fd_classifier_test_train"],
        "precision": overlap["precision"],
        "recall": overlap["recall"],
        "of test": "{precision:.3f} / {recall:.3f}".format(**figures["overlap_classifier_test_train"]),
        "classifier": figures["classifier"]["test_accuracy"],
        "samples": number,
        "NFE": figures["nfe"],
    }


def _seconds(records: list[dict[str, Any]]) -> float:
    """Return the seconds of the logged steps, from the rate of each log.

    If the first log covers a single call it has no rate, and the next one's is used.
    """
    known = [record["steps_per_second"] for record in records if "steps_per_second" in record]
    if not known:
        sys.exit("a run of a single call has logged no rate: train for longer (set --config.training.num_steps)")
    steps = [0] + [record["step"] for record in records]
    rates = [record.get("steps_per_second", known[0]) for record in records]
    return sum((after - before) / rate for before, after, rate in zip(steps[:-1], steps[1:], rates, strict=True))


def main() -> None:
    folders = [Path(word) for word in sys.argv[1:]]
    if not folders:
        sys.exit(__doc__)
    show("Real runs", [row(folder) for folder in folders])


if __name__ == "__main__":
    main()
