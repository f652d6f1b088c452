"""How each contender's time for an epoch is divided among kinds of operations.

All time outside matrix products keeps a contender below the machine's matrix rate.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

from contenders import CONTENDERS, FASTEST
from measure import report
from setting import Run, Setting, checked, make_setting, shared_parser
from torch.profiler import ProfilerActivity, profile

# Parts of operations' names for each kind; an operation is of the first kind of which its name contains a part.
KINDS = {
    "matrix products": ("mm", "linear", "matmul"),
    "attention": ("attention",),
    "softmax and its parts": ("softmax", "logsumexp", "exp", "log"),
    "copies": ("copy", "cat", "index", "gather", "contiguous", "clone", "fill", "zero"),
    "elementwise": ("mul", "add", "sub", "div", "silu", "pow", "rsqrt", "mean", "sum", "neg", "where", "mask"),
}


def parser() -> argparse.ArgumentParser:
    """Return the parser of this script's options."""
    return shared_parser(__doc__, pairs=16, repeats=1)


def main() -> int:
    options = checked(parser())
    with tempfile.TemporaryDirectory() as scratch:
        setting = make_setting(options, Path(scratch))
        times = {name: seconds_by_kind(run, setting) for name, run in {**CONTENDERS, **FASTEST}.items()}
    kinds = [*KINDS, "other"]
    rows = [
        {
            "contender": name,
            "seconds": sum(seconds.values()),
            **{kind: seconds[kind] / sum(seconds.values()) for kind in kinds},
        }
        for name, seconds in times.items()
    ]
    facts = {
        "data": (
            f"{options.dataset}, {options.pairs} pairs, {options.batch_size} a step, with the reference's log-probs"
        ),
        "model": f"{options.scale} Llama, random weights, {options.dtype}, with {options.threads} threads",
    }
    figures = {f"matrix_share_{row['contender']}": row["matrix products"] for row in rows}
    report("Shares of the time by operation", facts, rows, figures, options.out, f"operations_{options.dataset}")
    return 0


def seconds_by_kind(run: Callable[[Setting], Run], setting: Setting) -> dict[str, float]:
    """Return the wall-clock seconds of one run in each kind of operation, without those of the operations it calls."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        run(setting)
    seconds = dict.fromkeys([*KINDS, "other"], 0.0)
    for event in profiled.key_averages():
        kind = next((k for k, names in KINDS.items() if any(name in event.key for name in names)), "other")
        seconds[kind] += event.self_cpu_time_total / 1e6
    return seconds


if __name__ == "__main__":
    raise SystemExit(main())
