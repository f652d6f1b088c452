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
from setting import arguments, checked, make_setting


def options() -> argparse.ArgumentParser:
    """Return the parser of this script's options."""
    parser = arguments(__doc__, pairs=32, repeats=1)
    parser.add_argument("--only", choices=list(CONTENDERS), help="measure one contender in this process, print MiB")
    return parser


def main() -> int:
    given = checked(options())
    if given.only:
        print(peak(given))
        return 0
    command = [sys.executable, __file__, *sys.argv[1:]]

    def child(name: str) -> float:
        result = subprocess.run([*command, "--only", name], capture_output=True, text=True)
        if result.returncode:
            raise SystemExit(result.stderr[-2000:])
        return float(result.stdout.splitlines()[-1])

    runs = alternate({name: lambda name=name: child(name) for name in CONTENDERS}, given.repeats)
    peaks = {name: median(found) for name, found in runs.items()}
    rows = [{"contender": name, "MiB": value} for name, value in peaks.items()]
    facts = {
        "data": f"{given.dataset}, {given.pairs} pairs, {given.batch_size} a step",
        "model": f"{given.scale} Llama, random weights, {given.dtype}, on {given.device}",
    }
    figures = {
        "memory_default": peaks["ours_shared_prompt"] / peaks["trl_default"],
        "memory_precomputed": peaks["ours_shared_prompt"] / peaks["trl_precomputed"],
        "memory_plain": peaks["ours_shared_prompt"] / peaks["plain"],
    }
    report("Peak memory of one epoch", facts, rows, figures, given.out, f"memory_{given.dataset}")
    return 0


def peak(given: argparse.Namespace) -> float:
    """Return the MiB that one contender's epoch takes beyond what its process held before."""
    import trl  # noqa: F401 (imported in every process, so that imports are counted for none)

    with tempfile.TemporaryDirectory() as scratch:
        setting = make_setting(given, Path(scratch))
        peak = Peak(setting.device)
        CONTENDERS[given.only](setting)
        return peak.read()


if __name__ == "__main__":
    raise SystemExit(main())
