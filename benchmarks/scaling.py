"""How cost grows with the work: more pairs, longer completions, larger effective batches for RPO.

A loss over all pairs of an effective batch has M x M cells; the last figure is that part's share of the largest step.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contenders import ours
from measure import alternate, median, report
from setting import Run, Setting, checked, make_setting, shared_parser

from harness.backbones.language_model.tokens import Tokens
from losses import PreferenceBatch, get_loss

PAIRS = (1, 2, 4, 8)
LENGTHS = (1, 2, 4)
BATCHES = (8, 16, 32, 64)
EMBEDDING = 384  # of all-MiniLM-L6-v2


def parser() -> argparse.ArgumentParser:
    """Return the parser of this script's options."""
    return shared_parser(__doc__, pairs=16, repeats=5)


def main() -> int:
    options = checked(parser())
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as scratch:
        most = max(*PAIRS, max(BATCHES) // options.pairs) * options.pairs
        largest = make_setting(with_pairs(options, most), Path(scratch))
        series = {f"pairs x {k}": first(largest, k * options.pairs) for k in PAIRS} | {
            f"completions x {k}": longer(first(largest, options.pairs), k) for k in LENGTHS
        }
        runs = alternate({name: lambda s=s: ours(s) for name, s in series.items()}, options.repeats)
        for name, setting in series.items():
            rows.append(row(name, setting, runs[name]))
        rpo = {f"RPO, {m} pairs a step": rpo_setting(largest, m) for m in BATCHES}
        runs = alternate(
            {n: lambda s=s: ours(s, loss="rpo_paired", settings={}) for n, s in rpo.items()}, options.repeats
        )
        for name, setting in rpo.items():
            step = median([run.seconds for run in runs[name]]) / len(setting.batches)
            part = loss_seconds(setting.train.batch_size)
            rows.append(row(name, setting, runs[name]) | {"loss ms": 1000 * part, "its share of the step": part / step})
    columns = list(rows[-1])
    rows = [{column: r.get(column, "") for column in columns} for r in rows]
    facts = {
        "data": f"{options.dataset}, from {options.pairs} pairs",
        "model": (
            f"{options.scale} Llama, random weights, {options.dtype}, "
            f"on {options.device} with {options.threads} threads"
        ),
        "medians of": options.repeats,
    }
    by_name = {r["work"]: r for r in rows}
    figures = {
        "pairs_x8": by_name["pairs x 8"]["epoch s"] / by_name["pairs x 1"]["epoch s"],
        "completions_x4": by_name["completions x 4"]["epoch s"] / by_name["completions x 1"]["epoch s"],
        "rpo_share_of_step": rows[-1]["its share of the step"],
    }
    report("Cost as the work grows", facts, rows, figures, options.out, f"scaling_{options.dataset}")
    return 0


def with_pairs(options: argparse.Namespace, pairs: int) -> argparse.Namespace:
    """Return the options with another number of pairs."""
    return argparse.Namespace(**{**vars(options), "pairs": pairs})


def first(setting: Setting, pairs: int, **changes: Any) -> Setting:
    """Return the setting with only its first pairs."""
    return dataclasses.replace(setting, examples=setting.examples[:pairs], **changes)


def longer(setting: Setting, times: int) -> Setting:
    """Return the setting with every completion repeated: more tokens of the same kind."""
    return dataclasses.replace(setting, sequences=[Tokens(s.prompt, s.completion * times) for s in setting.sequences])


def rpo_setting(setting: Setting, batch_size: int) -> Setting:
    """Return the setting with the pairs of the largest batch, in batches of one size, and random embeddings."""
    drawn = np.random.default_rng(0).normal(size=(max(BATCHES), EMBEDDING)).astype(np.float32)
    train = dataclasses.replace(setting.train, batch_size=batch_size)
    return first(setting, max(BATCHES), train=train, embeddings=drawn / np.linalg.norm(drawn, axis=1, keepdims=True))


def loss_seconds(pairs: int, repeats: int = 50) -> float:
    """Return the seconds that only RPO's M x M part takes, forward and backward."""
    torch.manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(pairs, EMBEDDING), dim=1)
    seconds = []
    for _ in range(repeats):
        logps = [torch.randn(pairs, requires_grad=True) for _ in range(2)]
        batch = PreferenceBatch.from_logps(*logps, *torch.randn(2, pairs), prompt_embeddings=embeddings)
        started = time.perf_counter()
        torch.autograd.grad(get_loss("rpo_paired")(batch).mean(), logps)
        seconds.append(time.perf_counter() - started)
    return median(seconds)


def row(name: str, setting: Setting, runs: list[Run]) -> dict:
    """Return one row of the table."""
    seconds = median([run.seconds for run in runs])
    pairs = setting.pairs()
    tokens = sum(len(w.prompt) + len(w.completion) + len(r.completion) for w, r in pairs)
    return {
        "work": name,
        "pairs": len(pairs),
        "tokens": tokens,
        "epoch s": seconds,
        "CPU s": median([run.cpu_seconds for run in runs]),
        "ms/pair": 1000 * seconds / len(pairs),
        "ms/1000 tokens": 1e6 * seconds / tokens,
    }


if __name__ == "__main__":
    raise SystemExit(main())
