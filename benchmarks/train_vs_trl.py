"""One DPO epoch: this backbone against TRL's DPOTrainer and a plain PyTorch loop, on the same model, pairs and steps.

The last line holds the ratios of pairs per second; the loss curves of all contenders must agree to 1e-3 at every step.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from contenders import CONTENDERS, FASTEST
from measure import alternate, matrix_rate, median, model_flops, report
from setting import Run, checked, make_setting, shared_parser

LARGEST_DIFFERENCE = 1e-3


def parser() -> argparse.ArgumentParser:
    """Return the parser of this script's options."""
    parser = shared_parser(__doc__, pairs=64, repeats=5)
    parser.add_argument("--fastest", action="store_true", help="run TRL without activation checkpointing as well")
    return parser


def main() -> int:
    options = checked(parser())
    contenders = CONTENDERS | (FASTEST if options.fastest else {})
    with tempfile.TemporaryDirectory() as scratch:
        setting = make_setting(options, Path(scratch))
        runs = alternate({name: lambda run=run: run(setting) for name, run in contenders.items()}, options.repeats)
        rate = matrix_rate(setting.device, getattr(torch, options.dtype))
        prompt, completion = setting.mean_tokens()
        flops = {name: model_flops(setting, options.scale, shared_prompt=name == "ours_shared_prompt") for name in runs}

    seconds = {name: median([run.seconds for run in repeats]) for name, repeats in runs.items()}
    rows = [
        {
            "contender": name,
            "pairs/s": options.pairs / seconds[name],
            "epoch s": seconds[name],
            "fastest": min(run.seconds for run in repeats),
            "slowest": max(run.seconds for run in repeats),
            "CPU s": median([run.cpu_seconds for run in repeats]),
            "reference s": max(run.prepared for run in repeats) if name != "trl_default" else "in the epoch",
            "GFLOP/s": flops[name] / seconds[name] / 1e9,
            "of the matrix rate": flops[name] / seconds[name] / rate,
            "loss": " ".join(f"{loss:.5f}" for loss in repeats[0].losses),
        }
        for name, repeats in runs.items()
    ]
    difference = largest_difference(runs)
    facts = {
        "data": (
            f"{options.dataset}, {options.pairs} pairs, "
            f"on average {prompt:.0f} prompt and {completion:.0f} completion tokens"
        ),
        "model": (
            f"{options.scale} Llama, random weights, {options.dtype}, "
            f"on {options.device} with {options.threads} threads"
        ),
        "batches": (
            f"{options.batch_size} pairs a step; TRL and the plain loop in micro-batches of {options.micro_pairs} pairs"
        ),
        "matrix rate": f"{rate / 1e9:.0f} GFLOP/s",
        "medians of": options.repeats,
        "largest difference of a step's loss": f"{difference:.2g}",
    }
    best = seconds["ours_shared_prompt"]
    figures = {
        "ratio_default": seconds["trl_default"] / best,
        "ratio_precomputed": seconds["trl_precomputed"] / best,
        "ratio_plain": seconds["plain"] / seconds["ours"],
        "ratio_shared_prompt": seconds["plain"] / best,
    }
    if options.fastest:
        figures = {"ratio_fastest": seconds["trl_fastest"] / best, **figures}
    name = f"{'train' if options.device == 'cpu' else 'gpu'}_{options.dataset}"
    if options.out:
        plot(runs, options.out / f"{name}.png")
    report("One epoch of DPO", facts, rows, figures, options.out, name)
    if difference > LARGEST_DIFFERENCE:
        print(f"the loss curves differ by {difference:.2g}, more than {LARGEST_DIFFERENCE}")
        return 1
    return 0


def largest_difference(runs: dict[str, list[Run]]) -> float:
    """Return the largest difference between two contenders' losses of the same step."""
    curves = torch.tensor([run.losses for repeats in runs.values() for run in repeats], dtype=torch.float64)
    return (curves.max(dim=0).values - curves.min(dim=0).values).max().item()


def plot(runs: dict[str, list[Run]], path: Path) -> None:
    """Draw the loss curves in one plot."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for width, (name, repeats) in zip(range(2 * len(runs), 0, -2), runs.items(), strict=True):
        steps = range(1, len(repeats[0].losses) + 1)
        axes.plot(steps, repeats[0].losses, linewidth=width, marker="o", markersize=width + 2, label=name, alpha=0.7)
    axes.set(xlabel="optimiser step", ylabel="DPO loss", xticks=list(steps))
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    raise SystemExit(main())
