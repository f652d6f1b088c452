"""Measuring: alternating runs, the machine's matrix rate, the arithmetic of an epoch, and the report."""

from __future__ import annotations

import importlib.metadata
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import torch
from setting import SCALES, Setting

from harness.core.environment import environment
from harness.core.store import write_json

T = TypeVar("T")


def alternate(contenders: Mapping[str, Callable[[], T]], repeats: int) -> dict[str, list[T]]:
    """Run every contender in turn, `repeats` times, so that other load on the machine affects all of them equally."""
    runs: dict[str, list[T]] = {name: [] for name in contenders}
    for repeat in range(repeats):
        for name, run in contenders.items():
            print(f"round {repeat + 1} of {repeats}: {name}", file=sys.stderr, flush=True)
            runs[name].append(run())
    return runs


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int = 2048, seconds: float = 2.0) -> float:
    """Return the FLOP/s of the best of the square matrix products that fit into `seconds`."""
    size = 4 * size if device.type == "cuda" else size
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        (a @ b)[0, 0].item()  # waits for a GPU
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def model_flops(setting: Setting, scale: str, *, shared_prompt: bool) -> float:
    """Return the arithmetic of one epoch: 3 times the forward pass of every token, without padding or the reference.

    Matrix products only: 2 FLOPs a weight and token, attention over the preceding tokens (half of the square), the LM
    head at completion tokens alone. A shared prompt counts once a pair, else once a response.
    """
    shape = SCALES[scale]
    width, layers, inner = (shape[k] for k in ("hidden_size", "num_hidden_layers", "intermediate_size"))
    groups = shape["num_key_value_heads"] / shape["num_attention_heads"]
    weights = layers * (width * width * (2 + 2 * groups) + 3 * width * inner)
    total = 0.0
    for pair in setting.pairs():
        prompt, completions = len(pair[0].prompt), [len(side.completion) for side in pair]
        prompts = prompt if shared_prompt else 2 * prompt
        total += 2 * weights * (prompts + sum(completions)) + 2 * width * shape["vocab_size"] * sum(completions)
        seen = prompts * prompt / 2 + sum(c * (prompt + c / 2) for c in completions)  # keys read, over all queries
        total += 4 * layers * width * seen
    return 3 * total


def median(values: list[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def report(
    title: str, facts: Mapping, rows: list[dict], figures: Mapping[str, float], out: Path | None, name: str
) -> None:
    """Print a table and, last, the figures on one line; with `out`, write everything and the machine as JSON."""
    print(f"\n{title}")
    for key, value in facts.items():
        print(f"  {key}: {value}")
    print()
    columns = list(rows[0])
    cells = [columns] + [[spelled(row[c]) for c in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    if out:
        out.mkdir(parents=True, exist_ok=True)
        measured = {"title": title, "facts": facts, "rows": rows, "figures": figures}
        machine = environment()
        machine["versions"] |= {"trl": importlib.metadata.version("trl") if find_spec("trl") else None}
        write_json(out / f"{name}.json", {**measured, "date": time.strftime("%Y-%m-%d"), "environment": machine})
    print()
    print(" ".join(f"{key}={value:.4g}" for key, value in figures.items()))


def spelled(value: object) -> str:
    """Return the text of a table cell: numbers with three digits."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
