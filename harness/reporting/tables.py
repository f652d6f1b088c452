"""The leaderboard for people: Markdown for a file, rich tables for a terminal. Both show the essential columns."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
from pandas.api.types import is_numeric_dtype
from rich import box
from rich.table import Table
from rich.text import Text

from harness.core.errors import one_line
from harness.core.terminal import visible
from harness.reporting.judge_panel import ranking_agreements
from harness.reporting.leaderboard import INCOMPLETE, OK
from harness.reporting.results import POLICY

NOTHING = "-"  # where there is no number
FORMULA = tuple("=+-@\n\uff1d\uff0b\uff0d\uff20")  # what a cell begins with that a spreadsheet may run
Z = 1.96  # standard errors on each side in a 95 % interval of a mean


def markdown(frame: pd.DataFrame, experiment: str, decoding: Mapping) -> str:
    """Return the leaderboard of `build_leaderboard` as a Markdown page.

    It has one table with notes for each task, and one table of training.
    """
    page = [f"# {escape(experiment)}: leaderboard"]
    for title, rows in tables(frame):
        page += [f"## {escape(title)}", markdown_table(_result_columns(rows))]
        page += ["\n".join(f"- {escape(note)}" for note in notes(rows, decoding))]
    page += _panel_section(frame)
    trained = frame.drop_duplicates(POLICY)  # one row per policy, whatever it is evaluated on and by whichever judge
    page += [
        "## Training",
        markdown_table(_training_columns(trained)),
        "Means over seeds. Dev: on the held-out pairs, after training.",
    ]
    page += ["All columns, unrounded, with the keys of the cells: leaderboard.csv. Every response: prompts.csv."]
    return "\n\n".join(page) + "\n"


def csv_text(frame: pd.DataFrame) -> str:
    """Return a frame as CSV in which no text is a formula: a cell that a spreadsheet would run begins with `'`.

    Control characters are spelled out: a lone carriage return would begin a row. Names, settings and the ids of prompts
    come from plugins and data. Numbers stay as they are.
    """
    safe = frame.copy()
    for column in frame.columns[[not is_numeric_dtype(kind) for kind in frame.dtypes]]:
        safe[column] = frame[column].map(lambda cell: _no_formula(visible(cell)) if isinstance(cell, str) else cell)
    return safe.to_csv(index=False, lineterminator="\n")


def _no_formula(cell: str) -> str:
    if not cell.startswith(FORMULA):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def terminal_tables(frame: pd.DataFrame) -> list[Table]:
    """Return one rich table per task with the essential columns, readable at 100 columns, its notes below it."""
    rendered = []
    for title, rows in tables(frame):
        table = Table(
            title=Text(title, style="bold"),
            caption=Text("\n".join(notes(rows)), style="dim"),
            title_justify="left",
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        columns = {
            "#": _each(rows["rank"], "{:d}"),
            "loss": [" ".join(filter(None, pair)) for pair in zip(rows["loss"], rows["settings"], strict=True)],
            "win rate, %": interval_texts(rows, "win_rate", "{:.1f}"),
            "vs SFT": interval_texts(rows, "vs_sft", "{:+.1f}"),
            "n": _each(rows["n"], "{:,d}"),
            "tokens": _each(rows["mean_tokens"], "{:.1f}"),
            "dev acc, %": _each(100 * rows["dev_accuracy"], "{:.1f}"),
            "KL": _each(rows["kl"], "{:.2f}"),
        }
        for header in columns:
            fixed = header in ("#", "n", "tokens", "KL")
            table.add_column(header, justify="left" if header == "loss" else "right", no_wrap=fixed, overflow="fold")
        for cells in zip(*columns.values(), strict=True):
            table.add_row(*map(Text, cells))
        rendered.append(table)
    return rendered


def tables(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the title and the rows of each table of a leaderboard: one per task, judge, and training task."""
    for (task, judge, trained_on), rows in frame.groupby(["task", "judge_name", "trained_on"], sort=False):
        title = task if task == trained_on else f"{task} (trained on {trained_on})"
        yield f"{title}, judged by {judge}" if judge else title, rows


def notes(rows: pd.DataFrame, decoding: Mapping | None = None) -> list[str]:
    """Return the notes that a reader of one table needs, a sentence or two each.

    `decoding` is passed for the page: the terminal shows neither it nor the length-controlled rates.
    """
    first = rows.iloc[0]
    seeds = rows["seeds"].str.split().str.len().max()
    lines = [
        f"Win rate against {first['baseline']}; a tie is half a win, a missing judgement is left out. "
        "Brackets: 95 % bootstrap intervals over prompts "
        f"{f'and {seeds} seeds' if seeds > 1 else '(one seed: others may differ by more)'}. "
        "vs SFT: points, paired on prompts."
    ]
    judged = rows[rows["judge"] != ""]
    lines += [_judge(judged.iloc[0])] if len(judged) else []
    if judged["first_rate"].notna().any():
        lines.append(
            f"Asked in both orders, the judge gave {100 * judged['first_rate'].mean():.1f} % of its verdicts to the "
            "response shown first (mean of the rows)."
        )
    if judged["graded_rate"].notna().any():
        lines.append(_graded(100 * judged["graded_rate"]))
    if rows["baseline_characters"].notna().any():
        lines.append(f"The baseline's responses have {rows['baseline_characters'].max():.0f} characters on average.")
    controlled = rows[rows["lc_difficulty"] != ""]
    if decoding is not None:
        lines += [_length_controlled(controlled.iloc[0])] if len(controlled) else []
        lines.append("Decoding: " + ", ".join(f"{name}={value}" for name, value in decoding.items()) + ".")
    for row in rows[rows["status"] != OK].itertuples():
        why = f"{100 * row.coverage:.1f} % of its judgements are there" if row.status == INCOMPLETE else row.status
        lines.append(f"No rank for {' '.join(filter(None, (row.loss, row.settings)))}: {why}.")
    return lines


def escape(text: str) -> str:
    """Return text that Markdown shows unchanged, also in a table: no markup, no HTML, one line."""
    text = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*|~\[\]!#$])", r"\\\1", text)
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)  # within a word it is no markup


def _length_controlled(row: pd.Series) -> str:
    source = {
        "fitted": "prompts' difficulties fitted to the judgements of this table's policies",
        "estimated": "AlpacaEval's model with the packaged estimate of its difficulties",
        "official": "AlpacaEval's model and difficulties",
    }[row["lc_difficulty"]]
    return f"LC: the win rate if the responses were as long as the baseline's, by a logistic regression ({source})."


def _panel_section(frame: pd.DataFrame) -> list[str]:
    """Return the section on how far a panel's judges agree in ranking the policies; empty with a single judge."""
    pairs = ranking_agreements(frame)
    if not pairs:
        return []
    columns = {
        "task": [pair.task for pair in pairs],
        "trained on": [pair.trained_on for pair in pairs],
        "judges": [f"{pair.judge} and {pair.other}" for pair in pairs],
        "Kendall's tau": _each(pd.Series([pair.tau for pair in pairs]), "{:.2f}"),
        "policies": [str(pair.n) for pair in pairs],
    }
    note = "1: the two judges rank the policies alike; 0: as if by chance; -1: the other way round. Ties count (tau-b)."
    return ["## Do the judges agree?", markdown_table(columns), note]


def _judge(row: pd.Series) -> str:
    if pd.isna(row["judge_agreement"]):
        return f"Judge: {row['judge']}; its agreement with labels was not measured. {_checked(row)}"
    accuracy, low, high = (
        f"{100 * row[name]:.1f}" for name in ("judge_agreement", "judge_agreement_low", "judge_agreement_high")
    )
    return (
        f"Judge: {row['judge']}; it agrees with {accuracy} % [{low}, {high}] of "
        f"{row['judge_agreement_n']:,} held-out labels: {row['judge_agreement_labels']}. {_checked(row)}"
    )


def _graded(shares: pd.Series) -> str:
    """Return how many of the verdicts are graded, from the rows' shares in %."""
    low, high = shares.min(), shares.max()
    rows = "" if low == high else f" (mean of the rows, which have {low:.1f} to {high:.1f} %)"
    return f"Log-probs grade {shares.mean():.1f} % of its verdicts between 0 and 1{rows}; the others are 0 or 1."


def _checked(row: pd.Series) -> str:
    return f"Its judge-check: {row['judge_check']}."


def _result_columns(rows: pd.DataFrame) -> dict[str, Sequence[str]]:
    return {
        "#": _each(rows["rank"], "{:d}"),
        "loss": rows["loss"],
        "settings": rows["settings"],
        "win rate, %": interval_texts(rows, "win_rate", "{:.1f}"),
        "LC, %": interval_texts(rows, "lc_win_rate", "{:.1f}"),
        "vs SFT, points": interval_texts(rows, "vs_sft", "{:+.1f}"),
        "n": _each(rows["n"], "{:,d}"),
        "coverage, %": _each(100 * rows["coverage"], "{:.1f}"),
        "flips, %": _each(100 * rows["flip_rate"], "{:.1f}"),
        "tokens": _each(rows["mean_tokens"], "{:.1f}"),
        "characters": _each(rows["mean_characters"], "{:.0f}"),
        "finished, %": _each(100 * rows["finished"], "{:.0f}"),
        "KL, nats": _with_errors(rows, "kl", "{:.2f}"),
        "status": rows["status"].str.partition(":")[0],  # the reason for a failure is in the notes
    }


def _training_columns(rows: pd.DataFrame) -> dict[str, Sequence[str]]:
    return {
        "trained on": rows["trained_on"],
        "loss": rows["loss"],
        "settings": rows["settings"],
        "log-probs": rows["reduction"],
        "data": rows["data"],
        "examples": _each(rows["examples"], "{:,d}"),
        "tokens": _each(rows["tokens"], "{:,d}"),
        "steps": _each(rows["steps"], "{:,d}"),
        "forward passes": _each(rows["forward_passes"], "{:,d}"),
        "seconds": _each(rows["train_seconds"], "{:,.0f}"),
        "dev accuracy, %": _each(100 * rows["dev_accuracy"], "{:.1f}"),
        "dev margin, nats": _each(rows["dev_margin"], "{:.2f}"),
    }


def _each(values: pd.Series, form: str) -> list[str]:
    return [NOTHING if pd.isna(value) else form.format(value) for value in values]


def interval_texts(rows: pd.DataFrame, name: str, form: str) -> list[str]:
    ends = (_each(rows[column], form) for column in (name, f"{name}_low", f"{name}_high"))
    return [value if value == NOTHING else f"{value} [{low}, {high}]" for value, low, high in zip(*ends, strict=True)]


def _with_errors(rows: pd.DataFrame, name: str, form: str) -> list[str]:
    pairs = zip(_each(rows[name], form), _each(Z * rows[f"{name}_se"], form), strict=True)
    return [value if error == NOTHING else f"{value} ± {error}" for value, error in pairs]


def markdown_table(columns: Mapping[str, Sequence[str]]) -> str:
    """Format columns as a Markdown table with even widths; numbers are aligned to the right."""
    texts = {header: [escape(cell) or NOTHING for cell in cells] for header, cells in columns.items()}
    words = ("loss", "settings", "status", "task", "trained on", "judges", "log-probs", "data")
    laid_out = []
    for header, cells in texts.items():
        width = max(len(cell) for cell in [header, "--:", *cells])
        rule = "-" * width if header in words else "-" * (width - 1) + ":"
        laid_out.append(
            [cell.ljust(width) if header in words else cell.rjust(width) for cell in (header, rule, *cells)]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in zip(*laid_out, strict=True))
