"""The registered losses as a table, as data and as a page of the docs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from harness.conformance.trl import COUNTERPARTS, VERSION
from losses import get_loss, list_losses
from losses.modifiers import MODIFIERS, fitting
from losses.spec import LOSSES, REDUCTIONS, Loss

TEMPLATE = Path(__file__).parent / "losses.md"
PARTS = {"equation": r"L\w*(?= = )", "source": "Source: ", "checked_against": "Checked against: ", "trap": "Trap: "}


def losses_as_dicts() -> list[dict]:
    """Return every registered loss as a JSON-serialisable mapping."""
    return [
        {
            "name": loss.name,
            "summary": loss.summary,
            **_docstring_parts(loss),
            "paper": loss.paper,
            "data": loss.data,
            "needs": sorted(loss.needs),
            "reduction": loss.reduction,
            "couples_examples": loss.couples_examples,
            "start_value": loss.start(loss.settings()),
            "sign_exceptions": loss.sign_exceptions,
            "modifiers": [modified.name.partition("+")[2] for modified in fitting(loss)],
            "hyperparameters": {
                p.name: {"type": p.type.__name__, "bounds": str(p.bounds), "default": p.default, "grid": list(p.grid)}
                for p in loss.hyperparameters.values()
            },
            "defined_at": LOSSES.origin(loss.name),
        }
        for loss in map(get_loss, list_losses())
    ]


def losses_table() -> Table:
    """Return the registered losses as a table for the terminal. At 80 columns no word of a built-in loss is broken."""
    table = Table(
        title="registered losses",
        title_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    rows = []
    for loss in map(get_loss, list_losses()):
        hyperparameters = "\n".join(
            f"{p.name}: {p.default}" + (f" [{', '.join(map(str, p.grid))}]" if p.grid else "")
            for p in loss.hyperparameters.values()
        )
        needs = "\n".join(sorted(loss.needs))
        rows.append((loss.name, loss.paper, f"{loss.data}\n{loss.reduction}", needs, hyperparameters))
    headings = ("name", "paper", "data, reduction", "needs", "hyper-parameters: default [grid]")
    for column in zip(headings, *rows, strict=True):
        longest = max(len(word) for cell in column for word in cell.split() if "/" not in word)  # addresses are broken
        last = column[0] == headings[-1]  # takes the width that is left
        table.add_column(Text(column[0]), overflow="fold", min_width=longest, width=None if last else longest)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def losses_markdown() -> str:
    """Return `docs/losses.md`: a hand-written page with the registered losses filled in."""
    listed = losses_as_dicts()
    overview = ["| loss | data | needs | log-probs | value at the start | paper |", "|---|---|---|---|---|---|"]
    for loss in listed:
        start = "" if loss["start_value"] is None else f"{loss['start_value']:.6g}"
        name, needs = f"[{loss['name']}](#{loss['name']})", ", ".join(loss["needs"])
        overview.append(
            f"| {name} | {loss['data']} | {needs} | {loss['reduction']} | {start} | {_link(loss['paper'])} |"
        )
    headings = ("modifier", "what it does", "fits", "hyper-parameters: default [grid]", "paper")
    modifiers = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for modifier in map(MODIFIERS.get, MODIFIERS):
        dials = ", ".join(f"{p.name}: {p.default} {list(p.grid)}" for p in modifier.hyperparameters.values())
        fits = (inspect.getdoc(modifier.fits) or "").split("\n")[0].rstrip(".")
        cells = (f"`{modifier.name}`", modifier.summary, fits, dials, _link(modifier.paper))
        modifiers.append(f"| {' | '.join(cells)} |")
    page = TEMPLATE.read_text(encoding="utf-8")
    page = page.replace("<!-- modifiers -->", "\n".join(modifiers))
    page = page.replace("<!-- overview -->", "\n".join(overview))
    page = page.replace("<!-- trl -->", VERSION).replace("<!-- agreements -->", _comparisons(agreeing=True))
    page = page.replace("<!-- disagreements -->", _comparisons(agreeing=False))
    return page.replace("<!-- losses -->", "\n\n".join(map(_section, listed)))


def _comparisons(*, agreeing: bool) -> str:
    """Return the table of losses that agree with TRL's numerically, or of those that do not, with the reasons."""
    lines = ["| here | TRL | setup |" + ("" if agreeing else " why |"), "|---|---|---|" + ("" if agreeing else "---|")]
    for c in COUNTERPARTS:
        if agreeing != bool(c.differs):
            settings = _spelled(c.settings)
            here = f"`{c.loss}`" + (f": {settings}" if settings else "")
            options = dict(c.options)
            kinds = options.pop("loss_type", [])
            there = " ".join(
                [f"{c.trainer}Trainer", *(f"`{k}`" for k in ([kinds] if isinstance(kinds, str) else kinds))]
            )
            line = f"| {here} | {there}{': ' if options else ''}{_spelled(options)} | {c.setup} |"
            lines.append(line if agreeing else f"{line} {c.differs} |")
    return "\n".join(lines)


def _spelled(settings: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _section(loss: dict) -> str:
    start = loss["start_value"]
    facts = {
        "Paper": ". ".join(filter(None, (_link(loss["paper"]), loss["source"]))),
        "Data": f"{loss['data']}; needs {', '.join(loss['needs']) or 'nothing beyond log-probs and token counts'}",
        "Log-probs": REDUCTIONS[loss["reduction"]]
        + ("; rows depend on the whole effective batch" if loss["couples_examples"] else ""),
        "Value at the start": "depends on the data" if start is None else f"{start:.6g} at the defaults",
        "Sign": loss["sign_exceptions"],
        "Checked against": loss["checked_against"],
        "Trap": loss["trap"],
        "Modifiers": ", ".join(loss["modifiers"]) or "none fits",
    }
    lines = [f"### {loss['name']}", "", loss["summary"], ""]
    if loss["equation"]:
        lines += ["```", loss["equation"], "```", ""]
    lines += [f"- **{heading}**: {text}" for heading, text in facts.items() if text]
    if loss["hyperparameters"]:
        lines += ["", "| hyper-parameter | type | default | grid |", "|---|---|---|---|"]
    for name, p in loss["hyperparameters"].items():
        kind = f"{p['type']} {p['bounds']}".strip()
        lines.append(f"| {name} | {kind} | {p['default']} | {', '.join(map(str, p['grid']))} |")
    return "\n".join(lines)


def _docstring_parts(loss: Loss) -> dict[str, str]:
    """Return the paragraphs of a loss's docstring, identified by how they begin; missing ones are empty."""
    parts = dict.fromkeys(PARTS, "")
    for paragraph in (inspect.getdoc(loss.function) or "").split("\n\n")[1:]:
        text = re.sub(r" ?Returns `[^`]*`\.", "", " ".join(paragraph.split()))
        for part, beginning in PARTS.items():
            if re.match(beginning, text):
                parts[part] = text if part == "equation" else text.partition(": ")[2]
    return parts


def _link(paper: str) -> str:
    if not paper:
        return ""
    return f"[{paper}](https://{'arxiv.org/abs/' if re.fullmatch(r'[0-9.]+', paper) else ''}{paper})"
