"""TL;DR: Reddit posts and two summaries of each, of which one is preferred (2009.01325)."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

from harness.core.config import TaskConfig
from harness.core.errors import UserError
from harness.core.prompt import Message, Prompt
from harness.tasks.base import TaskData, register_task
from harness.tasks.formats import Dropped, Record, checked_text, paired_record, present, text_in
from harness.tasks.rows import Row
from harness.tasks.sources import read_packaged, read_rows
from harness.tasks.splits import read_task

SUFFIX = "TL;DR:"
PACKAGED = "post/model_summary/human_summary/preferred"
COMPARISONS = "info/summaries/choice"
ACCEPTED = f"{COMPARISONS}, or {PACKAGED} (for prompt/chosen/rejected set kind: preferences)"


@register_task("tldr", keep="start", baseline="the human summary", template="tldr", prompt_suffix="\n\nTL;DR:")
def load(config: TaskConfig) -> TaskData:
    """Read the packaged summaries, or a file, folder or hub data set in the layout of OpenAI's comparisons.

    The hub id is openai/summarize_from_feedback. Its files are made by a script, which is never run: the hub's own
    export to Parquet is read instead. Test questions are posts whose human summary is known.
    """
    packaged = config.data == "packaged"
    rows = read_packaged("tldr", config.subset) if packaged else _rows(config)
    first = next(rows)
    labels = "human" if "info" in first.values else "the data set's labels"
    if packaged:
        labels = "gpt-4 preferences"
    return read_task(chain([first], rows), parse, source=config.data, labels=labels)


def parse(row: Row) -> Record:
    """Return the record of a row in either layout. Without a preference, only a question comes of it."""
    return _packaged(row) if "post" in row.values else _comparison(row)


def _rows(config: TaskConfig):
    local = Path(config.data).expanduser()
    # The other configuration, "axis", holds ratings and no comparisons.
    subset = config.subset or ("comparisons" if not local.exists() or (local / "comparisons").is_dir() else None)
    return read_rows(config.data, subset, revision="refs/convert/parquet")


def _packaged(row: Row) -> Record:
    prompt = _post(text_in(row, "post", PACKAGED))
    summaries = {who: text_in(row, f"{who}_summary", PACKAGED).strip() for who in ("model", "human")}
    preferred = row.get("preferred")
    if preferred is None:
        return Record(prompt, None, summaries["human"] or None, row.split)
    if preferred not in summaries:
        raise UserError(f"{row.where}: column 'preferred' must be 'model', 'human' or null, got {preferred!r}")
    other = "human" if preferred == "model" else "model"
    return paired_record(prompt, summaries[preferred], summaries[other], baseline=summaries["human"], split=row.split)


def _comparison(row: Row) -> Record:
    info, summaries = present(row, "info", ACCEPTED), present(row, "summaries", COMPARISONS)
    choice = row.get("choice")
    if not isinstance(info, dict):
        raise UserError(
            f"{row.where}: column 'info' must be an object with post, title and subreddit, got {info!r:.40}"
        )
    if not isinstance(summaries, list) or not all(
        isinstance(s, dict) and isinstance(s.get("text"), str) for s in summaries
    ):
        raise UserError(f"{row.where}: column 'summaries' must be a list of objects with text and policy")
    if len(summaries) != 2 or choice not in (0, 1, None):
        raise UserError(
            f"{row.where}: expected two summaries and a choice of 0 or 1, got {len(summaries)} and {choice!r}"
        )
    if not info.get("post"):
        raise Dropped("not a Reddit post")  # the validation split has news articles too
    parts = {"SUBREDDIT: r/": info.get("subreddit"), "TITLE: ": info.get("title"), "POST: ": info["post"]}
    post = "\n\n".join(f"{head}{part}" for head, part in parts.items() if part)
    prompt = _post(checked_text(post, f"{row.where}: column 'info'"))
    texts = [checked_text(s["text"], f"{row.where}: column 'summaries'").strip() for s in summaries]
    human = next((text for text, s in zip(texts, summaries, strict=True) if s.get("policy") == "ref" and text), None)
    if choice is None:
        return Record(prompt, None, human, row.split)
    return paired_record(prompt, texts[choice], texts[1 - choice], baseline=human, split=row.split)


def _post(text: str) -> Prompt:
    """Return the post as a prompt, without the "TL;DR:" that the renderer puts behind what it keeps of it."""
    text = text.strip().removesuffix(SUFFIX).strip()
    if not text:
        raise Dropped("empty prompt")
    return (Message("user", text),)
