"""Peak memory of one DPO epoch, each contender in a process of its own, on the same pairs.

On the CPU the peak is the process's largest resident set, less what it held with everything imported and the data made;
on a GPU it is the most that the allocator had handed out.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from contenders import CONTENDERS
from measure import alternate, median, report
from peak import Peak
from setting import checked, make_setting, shared_parser


def parser() -> argparse.ArgumentParser:
    """Return the parser of this script's options."""
    parser = shared_parser(__doc__, pairs=32, repeats=1)
    parser.add_argument("--only", choices=list(CONTENDERS), help="measure one contender in this process, print MiB")
    return parser


def main() -> int:
    options = checked(parser())
    if options.only:
        print(peak(options))
        return 0
    command = [sys.executable, __file__, *sys.argv[1:]]

    def child(name: str) -> float:
        result = subprocess.run([*command, "--only", name], capture_output=True, text=True)
        if result.returncode:
            raise SystemExit(result.stderr[-2000:])
        return float(result.stdout.splitlines()[-1])

    runs = alternate({name: lambda name=name: child(name) for name in CONTENDERS}, options.repeats)
    peaks = {name: median(repeats) for name, repeats in runs.items()}
    rows = [{"contender": name, "MiB": value} for name, value in peaks.items()]
    facts = {
        "data": f"{options.dataset}, {options.pairs} pairs, {options.batch_size} a step",
        "model": f"{options.scale} Llama, random weights, {options.dtype}, on {options.device}",
    }
    figures = {
        "memory_default": peaks["ours_shared_prompt"] / peaks["trl_default"],
        "memory_precomputed": peaks["ours_shared_prompt"] / peaks["trl_precomputed"],
        "memory_plain": peaks["ours_shared_prompt"] / peaks["plain"],
    }
    report("Peak memory of one epoch", facts, rows, figures, options.out, f"memory_{options.dataset}")
    return 0


def peak(options: argparse.Namespace) -> float:
    """Return the MiB that one contender's epoch takes beyond what its process held before."""
    import trl  # noqa: F401 (imported in every process, so that imports are counted for none)

    with tempfile.TemporaryDirectory() as scratch:
        setting = make_setting(options, Path(scratch))
        peak = Peak(setting.device)
        CONTENDERS[options.only](setting)
        return peak.read()


if __name__ == "__main__":
    raise SystemExit(main())
