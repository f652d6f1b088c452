"""Runs the `alpaca-eval` package itself, in a separate process and with safe arguments.

The process is separate because importing the package sets the root logger's level and reads environment variables and
a .env file once, and because an answer that it cannot parse terminates it. With its defaults, the package would
download the reference outputs (with a call that datasets 4 rejects) and the table of difficulties, write into
site-packages, and cache answers under a key without model, prompt and endpoint. It is therefore called with the
outputs, without a leaderboard, with the metric that needs no difficulties, and with a separate answers file for each
model, prompt and endpoint. That file keeps paid answers; it also has the failures, which are removed before the next
run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from filelock import FileLock

from harness.core.errors import UserError, one_line
from harness.core.hashing import hash_value
from harness.core.prompt import readable_prompt
from harness.core.store import read_json, write_json, write_text
from harness.evaluation.alpaca_eval.annotators import load_settings
from harness.evaluation.alpaca_eval.options import AlpacaEvalOptions
from harness.evaluation.base import Comparison
from harness.evaluation.endpoint.options import longest_first, read_key, secrets_of, url_of, without

FOLDER = "alpaca_eval-official"  # the folder of its answers in the cache, its owner's alone
CHUNK = 16  # comparisons between two saves of its answers; a crash loses the answers since the last one


def check_official(options: AlpacaEvalOptions) -> None:
    """Raise `UserError` for settings that the package does not support."""
    if options.budget_usd is not None:
        raise UserError("judge.budget_usd: the package cannot hold a budget; leave it out, or engine: official")
    for name in ("requests_per_minute", "tokens_per_minute"):
        if getattr(options, name) is not None:
            raise UserError(f"judge.{name}: the package has no such limit; leave it out, or engine: official")


@dataclass(frozen=True)
class Config:
    """An annotator with the options applied: its name, its settings, and the hash of settings and prompt."""

    name: str
    settings: dict
    hash: str


def config_of(options: AlpacaEvalOptions) -> Config:
    """Return the annotator to run. Raises `UserError` if the annotator or its prompt cannot be read."""
    path, name, settings = load_settings(options.annotator)
    asking = {**(settings.get("completions_kwargs") or {}), **options.request}
    if options.model:
        asking["model_name"] = options.model
    template = (path.parent.parent / str(settings.get("prompt_template"))).resolve()
    settings = {**settings, "completions_kwargs": asking, "prompt_template": str(template)}
    try:
        return Config(name, settings, hash_value([settings | {"prompt_template": template.read_text("utf-8")}]))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"annotator {name!r}: its prompt {template} cannot be read ({error})") from None


def annotate(
    comparisons: Sequence[Comparison], options: AlpacaEvalOptions, cache: Path
) -> tuple[dict[str, float], str]:
    """Return the package's preferences by instruction (1: baseline, 2: policy), and why it stopped early, else "".

    Instructions without a preference are left out. Raises `UserError` for a repeated instruction, which the package
    cannot tell apart, and for a damaged answers file.
    """
    outputs = {readable_prompt(c.prompt): [c.baseline, c.response] for c in comparisons}
    if len(outputs) < len(comparisons):
        raise UserError("engine=official: the package takes one response to each instruction; some have several")
    config, key = config_of(options), read_key(options.key_env)
    kept = cache / FOLDER / f"{hash_value([config.hash, url_of(options)])[:16]}.json"
    cache.mkdir(parents=True, exist_ok=True)
    kept.parent.mkdir(mode=0o700, exist_ok=True)
    with FileLock(kept.with_suffix(".lock")), tempfile.TemporaryDirectory() as folder:
        answered = _kept(kept)
        if answered:
            write_json(kept, answered)  # without the failures, which the package would not retry
        else:
            kept.unlink(missing_ok=True)
        file = Path(folder) / config.name / "configs.yaml"
        file.parent.mkdir()
        file.write_text(yaml.safe_dump({config.name: config.settings}), encoding="utf-8")
        request = {
            "reference_outputs": [
                {"instruction": i, "output": o, "generator": "baseline"} for i, (o, _) in outputs.items()
            ],
            "model_outputs": [{"instruction": i, "output": o, "generator": "policy"} for i, (_, o) in outputs.items()],
            "annotators_config": str(file),
            "caching_path": str(kept.resolve()),
            "answer": str(Path(folder) / "answer.json"),
        }
        process = subprocess.run(
            [sys.executable, "-c", f"from {__name__} import answer; answer()"],
            input=json.dumps(request),
            env=_environment(options, key),
            cwd=folder,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
        secrets = secrets_of(options.key_env)
        if kept.is_file():
            _seal(kept, secrets)
        if process.returncode == 0:
            return read_json(Path(request["answer"])), ""
        answered = _kept(kept)
    last = next(iter(process.stderr.strip().splitlines()[::-1]), "no message")
    ours = [row for row in answered if outputs.get(row["instruction"]) == [row["output_1"], row["output_2"]]]
    preferences = {row["instruction"]: row["preference"] for row in ours}
    return preferences, f"the package ended with: {one_line(without(secrets, last))[:200]}"


def _environment(options: AlpacaEvalOptions, key: str) -> dict[str, str]:
    """Return this process's environment with the endpoint's variables and without others that the package reads."""
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith(("OPENAI_", "IS_ALPACA_EVAL"))},
        "OPENAI_API_KEY": key,
        "OPENAI_API_KEYS": key,
        "OPENAI_BASE_URL": url_of(options),
        "OPENAI_MAX_CONCURRENCY": str(options.concurrency),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }


def _seal(path: Path, secrets: Sequence[str]) -> None:
    """Remove secrets from the package's answers file, which has the endpoint's text, and make it its owner's alone."""
    escaped = [secret.replace("/", "\\/") for secret in secrets]  # as pandas writes them
    text = path.read_text(encoding="utf-8", errors="replace")
    write_text(path, without(longest_first({*secrets, *escaped}), text))
    path.chmod(0o600)


def _kept(path: Path) -> list[dict]:
    """Return the rows of the package's answers file without its failures."""
    try:
        rows = read_json(path) if path.is_file() else []
        kept = [row for row in rows if _is_preference(row["preference"])]
        if all(isinstance(row[name], str) for row in kept for name in ("instruction", "output_1", "output_2")):
            return kept
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    raise UserError(f"{path}: the package's file of answers is damaged; move it away")


def answer() -> None:
    """Annotate the request on standard input and write the preferences; the entry point of the separate process."""
    request = json.load(sys.stdin)
    import pandas as pd
    from alpaca_eval import main

    _, annotations = main.evaluate(
        model_outputs=pd.DataFrame(request["model_outputs"]),
        reference_outputs=pd.DataFrame(request["reference_outputs"]),
        annotators_config=request["annotators_config"],
        output_path=None,
        precomputed_leaderboard=None,
        is_cache_leaderboard=False,
        is_return_instead_of_print=True,
        fn_metric="get_winrate",
        sort_by="win_rate",
        annotation_kwargs={"chunksize": CHUNK},
        caching_path=request["caching_path"],
    )
    preferences = {row["instruction"]: row["preference"] for row in annotations if _is_preference(row["preference"])}
    write_json(Path(request["answer"]), preferences)


def _is_preference(value: object) -> bool:
    """Return whether a value is a preference; for a failure the package stores -1, None or NaN."""
    return isinstance(value, (int, float)) and 1 <= value <= 2
