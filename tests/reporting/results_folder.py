"""A results folder written as plain files, as `run` leaves it, with numbers that can be checked by hand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from harness.core.record_files import write_records
from harness.core.records import Failure, cell_folder

DECODING = {"temperature": 1.0, "top_p": 0.95, "max_new_tokens": 64}
BASELINES = {"hh": "the chosen response", "tldr": "the human summary", "alpaca_eval": "gpt-4-1106-preview"}
AGREEMENT = {"accuracy": 0.64, "low": 0.6, "high": 0.68, "n": 500, "labels": "human choices"}
JUDGE = "preference_model-1a2b3c"


def plan_cell(loss: str, settings: dict, seed: int, trained_on: str = "hh", evaluated_on: tuple = ("hh",)) -> dict:
    """Return one entry of plan.json. Its key is readable."""
    return {
        "key": f"{trained_on}-{loss}-{'-'.join(map(str, settings.values()))}-{seed}".replace("/", "_"),
        "trained_on": trained_on,
        "loss": loss,
        "settings": settings,
        "seed": seed,
        "reduction": "" if loss == "sft" else "mean" if loss == "ipo" else "sum",
        "paper": "2305.18290",
        "data": "" if loss == "sft" else "unpaired" if "unpaired" in loss else "paired",
        "evaluated_on": list(evaluated_on),
    }


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(jsonl(rows), encoding="utf-8")


def jsonl(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_plan(folder: Path, cells: list[dict], **more) -> Path:
    tasks = dict.fromkeys(task for cell in cells for task in cell["evaluated_on"])
    baselines = BASELINES | {task: f"the reference of {task}" for task in tasks if task not in BASELINES}
    plan = {"experiment": folder.name, "baselines": baselines, "decoding": DECODING, "cells": cells}
    write_json(folder / "plan.json", plan | more)
    return folder


def write_failures(folder: Path, cell: dict, *failures: Failure) -> None:
    path = cell_folder(folder, cell["key"])
    path.mkdir(parents=True, exist_ok=True)
    write_records(path, Failure, failures)


def write_training(folder: Path, cell: dict, *, steps: int = 4, dev_accuracy: float = 0.6) -> None:
    """Write a training that logs every step, and the dev pairs at its start and end. The SFT row trains nothing."""
    path = folder / "cells" / cell["key"] / "train"
    if cell["loss"] == "sft":
        nothing = {"steps": 0, "examples": 0, "tokens": 0, "forward_passes": 0, "seconds": 0.0, "dev": None}
        write_json(path / "summary.json", nothing)
        return
    logratios = {"chosen_logratio": -0.5, "rejected_logratio": -1.5}
    pairs = {"accuracy": dev_accuracy, "margin": 2.0}
    batch = {"accuracy": None, "margin": None} if cell["data"] == "unpaired" else pairs
    rows = [
        {"split": "train", "step": step, "loss": 0.6, "learning_rate": 1e-5, "grad_norm": 2.0 / step, "tokens": 100}
        | {"seconds": 1.0, **logratios, **batch}
        for step in range(1, steps + 1)
    ]
    start = {"split": "dev", "step": 0, "loss": 0.69, "accuracy": 0.5, "margin": 0.0, "kl": 0.0, **logratios}
    end = {"split": "dev", "step": steps, "loss": 0.6, "kl": 1.0, **pairs, **logratios}
    write_jsonl(path / "metrics.jsonl", [start, *rows, end])
    summary = {"steps": steps, "examples": 8 * steps, "tokens": 1000, "forward_passes": 16 * steps, "seconds": 12.5}
    write_json(path / "summary.json", {**summary, "dev": end})


def samples(task: str, kl: list[float]) -> list[dict]:
    """One response per entry of `kl`. Response i has 10 + i tokens and 100 characters; the baseline's has 80."""
    return [
        {
            "id": f"{task}-{i}",
            "prompt": [{"role": "user", "content": "Why?"}],
            "response": "r" * 100,
            "ids": list(range(10 + i)),
            "baseline": "b" * 80,
            "tokens": 10 + i,
            "finished": i > 0,
            "logp": -20.0 + nats,
            "reference_logp": -20.0,
        }
        for i, nats in enumerate(kl)
    ]


def samples_hash(task: str, kl: list[float]) -> str:
    """The sha256 of the file that `write_samples` writes."""
    return hashlib.sha256(jsonl(samples(task, kl)).encode()).hexdigest()


def write_samples(folder: Path, cell: dict, task: str, kl: list[float], *, decoding: dict = DECODING) -> None:
    """Write the responses of `samples`."""
    path = folder / "cells" / cell["key"] / f"sample-{task}"
    write_jsonl(path / "samples.jsonl", samples(task, kl))
    files = {"samples.jsonl": samples_hash(task, kl)}
    write_json(path / "artifact.json", {"inputs": {"decoding": decoding}, "files": files})


def replace_samples(folder: Path, cell: dict, task: str, rows: list[dict]) -> None:
    """Write other responses of a judged cell, as if those had been judged."""
    path = folder / "cells" / cell["key"]
    before = json.loads((path / f"sample-{task}" / "artifact.json").read_text())["files"]["samples.jsonl"]
    write_jsonl(path / f"sample-{task}" / "samples.jsonl", rows)
    after = hashlib.sha256(jsonl(rows).encode()).hexdigest()
    for manifest in path.glob("*/artifact.json"):
        manifest.write_text(manifest.read_text().replace(before, after))


def write_judgements(
    folder: Path,
    cell: dict,
    task: str,
    verdicts: list,
    kl: list[float],
    *,
    judge: str = JUDGE,
    name: str = "",
    graded: Sequence[float | None] | None = None,
) -> None:
    """Write judgements. A verdict is a preference, or the status of a judgement without one. The first verdict flipped.

    `name` is the name of a judge in a panel; `graded` the share of each judgement's verdicts that log-probs grade.
    """
    path = folder / "cells" / cell["key"] / (f"judge-{task}@{name}" if name else f"judge-{task}")
    rows = []
    for i, verdict in enumerate(verdicts):
        counted = not isinstance(verdict, str)
        status = verdict if not counted else "tie" if verdict == 0.5 else "ok"
        row = {"id": f"{task}-{i}", "status": status, "preference": verdict if counted else None}
        order = {"flipped": i == 0, "first": 1.0 if i == 0 else 0.5} if counted else {"flipped": None, "first": None}
        rows.append(row | order | {"detail": "" if counted else "no answer", "graded": graded[i] if graded else None})
    write_jsonl(path / "judgements.jsonl", rows)
    write_json(path / "judge.json", {"id": judge, "agreement": AGREEMENT})
    write_json(path / "artifact.json", {"inputs": {"samples": samples_hash(task, kl)}, "files": {}})


def write_cell(folder: Path, cell: dict, verdicts: dict[str, list], kl: list[float] | None = None, **judged) -> None:
    """Write a complete cell: trained, and sampled and judged on each task."""
    write_json(folder / "cells" / cell["key"] / "cell.json", cell)
    write_training(folder, cell)
    for task, task_verdicts in verdicts.items():
        nats = kl[: len(task_verdicts)] if kl else [0.0 if cell["loss"] == "sft" else 1.0] * len(task_verdicts)
        write_samples(folder, cell, task, nats)
        write_judgements(folder, cell, task, task_verdicts, nats, **judged)


def write_example(folder: Path) -> Path:
    """Write results of two training tasks and one task that only evaluates, with SFT, three losses and two seeds.

    On hh a judge failed (rpo_paired, seed 1, prompts 0 and 2) and a cell failed (ipo, seed 0). On tldr rpo_paired has
    not been run.
    """
    dpo, ipo, rpo = {"beta": 0.1}, {"tau": 0.1}, {"beta": 0.1, "temperature": 0.5}
    settings = {"sft": {}, "dpo": dpo, "ipo": ipo, "rpo_paired": rpo}
    hh = {
        ("sft", 0): [0, 0, 1, 0.5],
        ("sft", 1): [0, 1, 0, 0.5],
        ("dpo", 0): [1, 1, 1, 0.5],
        ("dpo", 1): [1, 0, 1, 0.5],
        ("ipo", 1): [1, 1, 1, 1],
        ("rpo_paired", 0): [1, 1, 0, 0],
        ("rpo_paired", 1): ["failed", 1, "unparsable", 0],
    }
    tldr = {"sft": [0, 1, 0, 1], "dpo": [0.5, 0.5, 0.5, 0.5], "ipo": [1, 1, 0, 1]}
    cells = []
    for task, evaluated_on in (("hh", ("hh", "alpaca_eval")), ("tldr", ("tldr",))):
        for seed in (0, 1):
            for loss in settings:
                cell = plan_cell(loss, settings[loss], seed, task, evaluated_on)
                cells.append(cell)
                kl = {("dpo", 0): [1.0, 2.0, 3.0, 4.0], ("dpo", 1): [3.0, 4.0, 5.0, 6.0]}.get((loss, seed))
                if task == "hh" and (loss, seed) in hh:
                    write_cell(folder, cell, {"hh": hh[loss, seed], "alpaca_eval": [1, 0]}, kl)
                elif task == "hh":
                    reason = "ValueError: the loss became nan | <b>step 3</b>\nmore"
                    write_failures(folder, cell, Failure("train", reason))
                elif loss in tldr:
                    write_cell(folder, cell, {"tldr": tldr[loss]})
    return write_plan(folder, cells)
