"""The operations that each contender spends an epoch's time on, which keep it from the machine's matrix rate."""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path

from contenders import CONTENDERS, FASTEST
from measure import report
from setting import Setting, arguments, checked, make_setting
from torch.profiler import ProfilerActivity, profile

# Kinds of operations: the first kind that has a part of the operation's name counts.
KINDS = {
    "matrix products": ("mm", "linear", "matmul"),
    "attention": ("attention",),
    "softmax and its parts": ("softmax", "logsumexp", "exp", "log"),
    "copies": ("copy", "cat", "index", "gather", "contiguous", "clone", "fill", "zero"),
    "elementwise": ("mul", "add", "sub", "div", "silu", "pow", "rsqrt", "mean", "sum", "neg", "where", "mask"),
}


def options() -> argparse.ArgumentParser:
    """Return the parser of this script's options."""
    return arguments(__doc__, pairs=16, repeats=1)


def main() -> int:
    given = checked(options())
    with tempfile.TemporaryDirectory() as scratch:
        setting = make_setting(given, Path(scratch))
        times = {name: seconds_by_kind(run, setting) for name, run in {**CONTENDERS, **FASTEST}.items()}
    kinds = [*KINDS, "other"]
    rows = [
        {
            "contender": name,
            "seconds": sum(found.values()),
            **{kind: found[kind] / sum(found.values()) for kind in kinds},
        }
        for name, found in times.items()
    ]
    facts = {
        "data": f"{given.dataset}, {given.pairs} pairs, {given.batch_size} a step, with the reference's log-probs",
        "model": f"{given.scale} Llama, random weights, {given.dtype}, with {given.threads} threads",
    }
    figures = {f"matrix_share_{row['contender']}": row["matrix products"] for row in rows}
    report("Shares of the time by operation", facts, rows, figures, given.out, f"operations_{given.dataset}")
    return 0


def seconds_by_kind(run, setting: Setting) -> Counter:
    """Return the seconds, by the clock, that one run spends in each kind of operation itself."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        run(setting)
    found = Counter(dict.fromkeys([*KINDS, "other"], 0.0))
    for event in profiled.key_averages():
        kind = next((k for k, names in KINDS.items() if any(name in event.key for name in names)), "other")
        found[kind] += event.self_cpu_time_total / 1e6
    return found


if __name__ == "__main__":
    raise SystemExit(main())
