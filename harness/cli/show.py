"""The command `show`: prints everything that is known about one cell."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from harness.cli.arguments import add_cell_command
from harness.cli.sequences import SET_OFF, sequence_parts
from harness.core.duration import duration_text
from harness.core.errors import UserError
from harness.core.records import SeenPart, SeenSequence
from harness.core.terminal import Terminal, visible

if TYPE_CHECKING:
    from rich.console import RenderableType

HELP = "Show one cell: settings, data, a training example, training, responses with verdicts; or its whole first batch."
EPILOG = """examples:
  python -m harness show KEY
  python -m harness show hh/rpo_paired --experiment rpo_vs_dpo --samples 10
  python -m harness show hh/dpo --batch
  python -m harness show "sentiment/dpo/beta=1.0/0" --json

CELL is a KEY as leaderboard.csv and `status` print it, the beginning of one, or task/loss/settings/seed. Without
--batch it needs no torch, model or data. Of the batch, the tokens that the loss is computed on are bold and underlined,
in a file or a pipe between ⟦ and ⟧; the others are what they are conditioned on.
exit status: 0 shown, 2 something must be changed first"""
LONGEST = 800  # characters shown of a text; --json has all of it
STEPS = 10  # rows of each kind in the table of training
PIPED_WIDTH = 120  # characters
COLUMNS = {  # of the training table: the field and its format
    "loss": ("loss", "{:.4f}"),
    "margin": ("margin", "{:+.3f}"),
    "accuracy": ("accuracy", "{:.3f}"),
    "KL": ("kl", "{:.3f}"),
    "gradient norm": ("grad_norm", "{:#.3g}"),
    "learning rate": ("learning_rate", "{:.2e}"),
}


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add the command to the command line."""
    command = add_cell_command(commands, "show", run, HELP, EPILOG)
    command.add_argument(
        "--samples", type=int, default=3, metavar="N", help="responses to show of each task (default: 3)"
    )
    form = command.add_mutually_exclusive_group()
    form.add_argument(
        "--batch", action="store_true", help="show the first training batch with its loss mask, and only it"
    )
    form.add_argument("--json", action="store_true", help="print one JSON object, with every step of training")


def run(options: argparse.Namespace) -> int:
    """Print a cell."""
    from harness.reporting.cell_facts import cell_facts
    from harness.reporting.find_cell import find_cell

    if options.samples < 0:
        raise UserError(f"--samples must be at least 0, got {options.samples}")
    cell = find_cell(options.cell, options.results, options.experiment)
    console = Terminal(piped_width=PIPED_WIDTH)
    if options.batch:
        from harness.run.first_batch import first_batch  # imports torch and transformers

        parts = batch_parts(cell.label, first_batch(cell), marked=not console.is_terminal)
    else:
        facts = cell_facts(cell, options.samples)
        if options.json:
            console.lines(json.dumps(facts, indent=2))
            return 0
        parts = cell_parts(facts, marked=not console.is_terminal)
    for part in parts:
        console.print(part, soft_wrap=options.batch and not console.is_terminal)
    return 0


def cell_parts(facts: Mapping, *, marked: bool) -> Iterable[RenderableType]:
    """Yield what is known about a cell as readable sections; `marked` is as in `sequence_parts`."""
    yield Text(visible(f"{facts['label']}  ({facts['key']})"), style="bold")
    yield _lines(_identity(facts))
    yield from _section("settings", _settings(facts))
    yield from _section("data", _data(facts))
    if facts["example"]:
        example = [
            SeenSequence(**{**sequence, "parts": tuple(SeenPart(**part) for part in sequence["parts"])})
            for sequence in facts["example"]
        ]
        yield Text(f"\nfirst training example{SET_OFF[marked]}", style="bold")
        yield from sequence_parts(example, marked=marked, longest=LONGEST)
    if facts["trajectory"]:
        yield from _section("training", _summary(facts["summary"]))
        yield _trajectory(facts["trajectory"])
    for evaluation in facts["evaluations"]:
        yield from _evaluation(evaluation)


def batch_parts(label: str, batch: Sequence[SeenSequence], *, marked: bool) -> Iterable[RenderableType]:
    """Yield the sequences of a batch. Style or (`marked`) brackets set off the tokens that the loss is computed on."""
    tokens, trained = sum(s.tokens for s in batch), sum(s.trained for s in batch)
    yield Text(visible(f"{label}: first batch"), style="bold")
    yield Text(f"  {len(batch)} sequences, {tokens:,} tokens; the loss is computed on {trained:,} of them")
    yield from sequence_parts(batch, marked=marked)


def _identity(facts: Mapping) -> dict[str, str]:
    lines = {"experiment": facts["experiment"], "folder": facts["folder"]}
    if facts["reduction"]:
        paper = f", arXiv {facts['paper']}" if facts["paper"] else ""
        lines["loss"] = f"{facts['loss']}{paper}; {facts['data']} data, log-probs: {facts['reduction']}"
    lines["evaluated on"] = ", ".join(facts["evaluated_on"])
    lines["trained"] = facts["trained"] or "not yet"
    if git := facts["environment"].get("git"):
        versions = facts["environment"]["versions"]
        with_changes = " with changes" if git.get("changed") else ""
        lines["code"] = f"{git.get('commit')}{with_changes}, torch {versions.get('torch')}"
    if facts["failures"]:
        lines["failed"] = "; ".join(f"{failure['where']}: {failure['reason']}" for failure in facts["failures"])
    return lines


def _settings(facts: Mapping) -> dict[str, str]:
    from harness.reporting.cell_facts import changed_settings

    own = {name: str(value) for name, value in facts["settings"].items()}
    changed = changed_settings(facts["config"])
    others = ("name", "losses.", "seeds")  # belong to the experiment, not to this cell
    lines = own | {name: str(value) for name, value in changed.items() if not name.startswith(others)}
    if facts["differing"]:
        differing = ", ".join(facts["differing"])
        lines["note"] = f"the last run of the experiment had other values than this cell of: {differing} (see --json)"
    return lines


def _data(facts: Mapping) -> dict[str, str]:
    start, task = facts["inputs"].get("start", {}), facts["trained_on"]
    counts = {name: count for name, count in facts["counts"].get(task, {}).items() if count}
    hashes = {
        "data": facts["hashes"].get("data", {}).get(task),
        "tokens": start.get("tokens"),
        "dev tokens": facts["inputs"].get("dev"),
        "model": start.get("model"),
        "policy": facts["files"].get("tensors.safetensors"),
    }
    lines = {name: f"sha256 {value}" for name, value in hashes.items() if value}
    return lines | {"counts": "; ".join(f"{name}: {count:,}" for name, count in counts.items())}


def _summary(summary: Mapping) -> dict[str, str]:
    counts = [
        f"{summary[name]:,} {name.replace('_', ' ')}" for name in ("steps", "examples", "tokens", "forward_passes")
    ]
    return {"took": f"{', '.join(counts)}, {duration_text(summary['seconds'])}"}


def _trajectory(metrics: Sequence[Mapping]) -> Table:
    from harness.reporting.cell_facts import shown_steps

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), caption_justify="left")
    shown = shown_steps(metrics, STEPS)
    if len(shown) < len(metrics):
        table.caption = Text(f"{len(shown)} of {len(metrics)} rows; all are in train/metrics.jsonl, and in --json")
    columns = {h: c for h, c in COLUMNS.items() if any(row.get(c[0]) is not None for row in shown)}
    for header in ("step", "split", *columns):
        table.add_column(header, justify="left" if header == "split" else "right", no_wrap=True)
    for row in shown:
        cells = ["" if row.get(field) is None else form.format(row[field]) for field, form in columns.values()]
        table.add_row(str(row["step"]), visible(row["split"]), *cells, style="bold" if row["split"] == "dev" else "")
    return table


def _evaluation(evaluation: Mapping) -> Iterable[RenderableType]:
    judges = ", ".join(f"{name}: {id}" if name else str(id) for name, id in evaluation["judges"].items() if id)
    samples = evaluation["samples"]
    told = {
        "responses": f"{evaluation['responses']}, the first {len(samples)} follow"
        if samples
        else str(evaluation["responses"]),
        "against": evaluation["baseline"],
        "judged by": judges or "nobody yet",
    }
    for name, rate in evaluation["win_rates"].items():
        title = f"win rate, {name}" if name else "win rate"
        told[title] = f"{100 * rate['win_rate']:.1f} % of {rate['n']} (with its interval in leaderboard.md)"
    yield from _section(f"on {evaluation['task']}", told)
    for row in samples:
        yield Text(f"\n  {visible(row['id'])}", style="cyan")
        turns = "\n".join(f"{turn['role']}: {turn['content']}" for turn in row["prompt"])
        yield from _block("prompt", turns, "dim")
        ended = "" if row["finished"] else ", cut at the limit"
        kl = row["logp"] - row["reference_logp"]
        about = f"{row['tokens']} tokens{ended}; log-prob {row['logp']:.1f}, {kl:+.1f} against the reference's"
        yield from _block(f"response ({about})", row["response"], "")
        yield from _block("baseline", row["baseline"], "")
        for name, verdict in row["verdicts"].items():
            yield _verdict(name, verdict)


def _verdict(name: str, verdict: Mapping) -> Text:
    preference = verdict["preference"]
    said = (
        verdict["status"] if preference is None else f"{verdict['status']}, preference {preference:g} for the response"
    )
    flipped = "; the two orders disagree" if verdict.get("flipped") else ""
    detail = f"; {verdict['detail']}" if verdict.get("detail") else ""
    style = {None: "red", True: "green", False: "yellow"}[None if preference is None else preference > 0.5]
    return Text(f"    verdict{f' of {name}' if name else ''}: {visible(said)}{flipped}{visible(detail)}", style=style)


def _block(title: str, text: str, style: str) -> Iterable[RenderableType]:
    yield Text(f"    {title}", style="italic")
    cut = f" (... {len(text):,} characters in all)" if len(text) > LONGEST else ""
    yield Padding(Text(visible(text[:LONGEST]) + cut, style=style), (0, 0, 0, 6), expand=False)


def _section(title: str, lines: Mapping[str, str]) -> Iterable[RenderableType]:
    yield Text(f"\n{visible(title)}", style="bold")
    yield _lines(lines)


def _lines(lines: Mapping[str, str]) -> Table:
    """Lay out names and values in two columns; long values wrap within their column."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in lines.items():
        table.add_row(Text(f"  {visible(name)}"), Text(visible(value)))
    return table
