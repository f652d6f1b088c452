"""What planning costs: many cells beside few, and many pairs that are tokenised or read again.

Each plan is a process of its own, `python -m harness plan`, and its seconds are all of that process's. The cells are a
grid of DPO on the packaged data of the sentiment task. The pairs are words of the packaged HH pairs, drawn at random,
beside the tokenizer of the packaged SmolLM2.

    python benchmarks/planning.py --cells 1000 --pairs 50000
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import report

from harness.tasks.sources import read_packaged

ROOT = Path(__file__).resolve().parents[1]
WORDS = 60  # in each prompt and completion, on average
GRID = """\
model: {{ name: tiny-imdb }}
seeds: {seeds}
tasks: {{ sentiment: {{ train_pairs: 256, max_prompt_tokens: 32, max_completion_tokens: 24, generate: {{}} }} }}
losses: {{ dpo: {{ beta: [0.01, 0.1] }} }}
sample: {{ temperature: 1.0, top_p: 1.0, max_new_tokens: 24 }}
judge: {{ kind: gold, reward: imdb_sentiment }}
"""
PAIRS = """\
model: {{ name: smollm2-135m-instruct }}
tasks: {{ mine: {{ kind: preferences, data: {data}, max_prompt_tokens: 512 }} }}
losses: {{ dpo: {{}} }}
"""


def plan(folder: Path, name: str, text: str) -> dict[str, float]:
    """Plan an experiment in a process of its own; return its wall-clock and CPU seconds and its peak memory in MiB."""
    path = folder / f"{name}.yaml"
    path.write_text(f"results: {folder / 'results'}\n{text}", encoding="utf-8")
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "harness", "plan", str(path)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # The peak is that of the largest child so far, so plans are made in the order of their size.
    return {"seconds": time.monotonic() - started, "cpu_seconds": cpu, "peak_mib": after.ru_maxrss / 2**10}


def write_pairs(path: Path, count: int) -> None:
    """Write this many pairs to train on, and a tenth more for the other splits."""
    words = " ".join(str(row.values["chosen"]) for row in read_packaged("hh")).split()
    draw = random.Random(0)
    with open(path, "w", encoding="utf-8") as file:
        for number in range(count + max(20, count // 10)):
            texts = [" ".join(draw.choices(words, k=draw.randint(1, 2 * WORDS))) for _ in range(3)]
            split = "train" if number < count else ("dev", "test")[number % 2]
            row = {"prompt": f"{number} {texts[0]}", "chosen": texts[1], "rejected": texts[2], "split": split}
            file.write(json.dumps(row) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=1000, help="cells of the larger plan")
    parser.add_argument("--pairs", type=int, default=50_000, help="pairs to tokenise")
    parser.add_argument("--out", type=Path, help="folder of the result as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = folder / "pairs.jsonl"
        write_pairs(data, options.pairs)
        plans = {
            "3-cells-first": GRID.format(seeds=[0]),
            "3-cells": GRID.format(seeds=[0]),
            f"{3 * (options.cells // 3)}-cells": GRID.format(seeds=list(range(options.cells // 3))),
            f"{options.pairs}-pairs-tokenised": PAIRS.format(data=data),
            f"{options.pairs}-pairs-read-again": PAIRS.format(data=data),
        }
        rows = [{"plan": name, **plan(folder, name, text)} for name, text in plans.items()]
    _, few, many, made, read = (row["seconds"] for row in rows)
    figures = {"seconds_more_cells": many - few, "tokens_again": made / read, "peak_mib": rows[-1]["peak_mib"]}
    report("Planning", {"cores": os.cpu_count(), "data": data.name}, rows, figures, options.out, "planning")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
