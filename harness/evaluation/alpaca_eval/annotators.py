"""The annotators of the `alpaca-eval` package: their prompts, and how their answers are parsed.

Prompts and settings are read from the installed package (or a folder with the same layout) without importing it: the
import takes seconds, sets the root logger's level and reads a .env file.
"""

from __future__ import annotations

import ast
import importlib.util
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from harness.core.errors import UserError, first_line, one_line
from harness.core.hashing import hash_value
from harness.evaluation.endpoint.reply import Reply, UnparsableError
from losses.registry import nearest

PLACEHOLDERS = ("{instruction}", "{output_1}", "{output_2}")
TURN = re.compile(r"<\|im_start\|>(system|user|assistant)\n(.*?)<\|im_end\|>", re.DOTALL)
# Settings for upstream's own client.
NOT_SENT = ("model_name", "requires_chatml", "price_per_token", "client_kwargs", "num_procs")
CALLS = ("function_call", "functions", "tools")
LONGEST_RANKING = 2000  # maximum characters of an answer that is parsed as a Python literal
LONGEST_SCORES = 200  # maximum characters of a line with two scores
PROBE = Reply({"logprobs": {"content": [{"token": "?", "top_logprobs": [{"token": "?", "logprob": 0.0}]}]}})


@dataclass(frozen=True)
class Annotator:
    """One annotator: its name, its settings from the file, and its chat as (role, text with placeholders) pairs."""

    name: str
    settings: Mapping
    turns: tuple[tuple[str, str], ...]

    @property
    def question(self) -> str:
        """The sha256 hex digest of the prompt without the texts to compare."""
        return hash_value(self.turns)

    @property
    def hash(self) -> str:
        """The sha256 hex digest of the prompt without the texts to compare, and of how answers are parsed."""
        return hash_value([self.turns, self.parser, self.parser_settings, self.switches])

    @property
    def model(self) -> str:
        """The name of the model in the settings."""
        return str(self.settings["completions_kwargs"]["model_name"])

    @property
    def parser(self) -> str:
        """The name of the function that parses answers (a key of `PARSERS`)."""
        return self.settings.get("fn_completion_parser", "regex_parser")

    @property
    def parser_settings(self) -> Mapping:
        """The keyword arguments of the parser."""
        return self.settings.get("completion_parser_kwargs") or {}

    @property
    def switches(self) -> bool:
        """Whether the outputs are switched for some instructions (see `shows_model_first`)."""
        return bool(self.settings.get("is_randomize_output_order", True))

    def parameters(self, changes: Mapping[str, object]) -> dict[str, object]:
        """Return the fields of a request besides its messages: the annotator's, updated with `changes`.

        Fields of None are left out. The limit on the answer is sent under its current name, `max_completion_tokens`.
        """
        own = {k: v for k, v in self.settings["completions_kwargs"].items() if k not in NOT_SENT}
        fields = {"model": self.model, **own, **changes}
        if "max_tokens" in fields:
            fields = {"max_completion_tokens": fields.pop("max_tokens"), **fields}
        return {name: value for name, value in fields.items() if value is not None}

    def messages(self, instruction: str, output_1: str, output_2: str) -> list[dict[str, str]]:
        """Return the chat that asks for a verdict on two outputs in this order.

        It is identical to upstream's unless a text contains a placeholder or the marks between turns: here the turns
        are split first and the texts inserted by one substitution, so that no text can add a turn or another text.
        """
        texts = dict(zip(PLACEHOLDERS, (instruction, output_1, output_2), strict=True))
        pattern = "|".join(map(re.escape, PLACEHOLDERS))
        return [
            {"role": role, "content": re.sub(pattern, lambda match: texts[match.group()], text).strip()}
            for role, text in self.turns
        ]

    def read(self, reply: Reply) -> float:
        """Return an answer's preference for the first output, in [0, 1]; raises `UnparsableError`."""
        return PARSERS[self.parser](reply, **self.parser_settings)


def load_annotator(name: str) -> Annotator:
    """Return the package's annotator of this name, or the one in this folder or file (configs.yaml).

    Raises `UserError` for an annotator that is missing or cannot be read, and for one that only the package itself can
    run (other providers, several comparisons per request, function calls), which needs `engine: official`.
    """
    path, settings_name, settings = load_settings(name)
    what = f"annotator {name!r}"
    asking, parser = settings.get("fn_completions"), settings.get("fn_completion_parser", "regex_parser")
    request = settings.get("completions_kwargs") or {}
    if not isinstance(request, dict):
        raise UserError(f"{what}: its completions_kwargs are no mapping")
    beyond = [
        (asking != "openai_completions", f"it asks by {asking!r}"),
        (settings.get("batch_size", 1) != 1, "it has several comparisons in one request"),
        (parser not in PARSERS, f"its answers are read by {parser!r}"),
        (any(name in request for name in CALLS), "it answers by a function call"),
        ("model_name" not in request, "it names no model"),
    ]
    for is_beyond, why in beyond:
        if is_beyond:
            raise UserError(f"{what}: {why}, which only the package itself can; set judge.engine=official")
    template = path.parent.parent / str(settings.get("prompt_template"))
    try:
        text = template.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{what}: its prompt {template} cannot be read ({error})") from None
    turns = tuple(TURN.findall(text))
    if not turns:
        raise UserError(f"{what}: its prompt {template} is no chat; set judge.engine=official")
    missing = [mark for mark in PLACEHOLDERS if not any(mark in turn for _, turn in turns)]
    if missing:
        raise UserError(f"{what}: its prompt {template} lacks {' and '.join(missing)}")
    annotator = Annotator(settings_name, settings, turns)
    try:
        annotator.read(PROBE)
    except UnparsableError:
        pass
    except Exception as error:  # better now than for each paid answer
        raise UserError(f"{what}: its completion_parser_kwargs do not fit {parser} ({one_line(error)})") from None
    return annotator


def load_settings(name: str) -> tuple[Path, str, dict]:
    """Return an annotator's file, name and settings. Raises `UserError` if it is missing, malformed or a pool."""
    package = annotators_folder()
    known = sorted(path.parent.name for path in package.glob("*/configs.yaml"))
    path = package / name / "configs.yaml" if name in known else Path(name)
    path = path / "configs.yaml" if path.is_dir() else path
    if not path.is_file():
        raise UserError(
            f"annotator {name!r} is neither one of alpaca-eval's nor a folder or file{nearest(name, known)}"
        )
    try:
        pool = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"annotator {path} cannot be read: {first_line(error)}") from None
    if not isinstance(pool, dict) or not all(isinstance(settings, dict) for settings in pool.values()):
        raise UserError(f"annotator {path}: a mapping from its name to its settings is expected")
    if len(pool) != 1:
        raise UserError(f"annotator {path}: it is a pool of {len(pool)}; name a file with one of them")
    return path.resolve(), *next(iter(pool.items()))


def annotators_folder() -> Path:
    """Return the installed package's folder of annotators. Raises `UserError` if it is not installed."""
    spec = importlib.util.find_spec("alpaca_eval")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("the package alpaca-eval, whose prompts are asked, is not installed: pip install alpaca-eval")
    return Path(next(iter(spec.submodule_search_locations))) / "evaluators_configs"


def _logprobs(
    reply: Reply,
    numerator_token: str,
    denominator_tokens: list[str],
    is_binarize: bool = True,
    log_prob_index: int | str = "batch",
) -> float:
    """Return the probability of the first output's token among the label tokens, at one position of the answer."""
    place = 0 if log_prob_index == "batch" else int(log_prob_index)
    if not reply.tokens:
        raise UnparsableError("the answer has no logprobs")
    try:
        _, alternatives = reply.tokens[place]
    except IndexError:
        raise UnparsableError(f"the answer has no token {place}") from None
    weights = {token: math.exp(alternatives.get(token, -math.inf)) for token in {numerator_token, *denominator_tokens}}
    total = sum(weights[token] for token in denominator_tokens)
    if not total > 0:
        raise UnparsableError(f"none of {', '.join(sorted(weights))} is among the likeliest tokens")
    if is_binarize:
        return float(all(weights[numerator_token] > w for token, w in weights.items() if token != numerator_token))
    return min(weights[numerator_token] / total, 1.0)


def _regex(reply: Reply, outputs_to_match: Mapping[object, str]) -> float:
    """Parse the verdict whose pattern matches first in the answer: 1, 2 or, for a draw, 0 or 1.5."""
    matches = [(match.start(), key) for key, p in outputs_to_match.items() if (match := re.search(p, reply.text))]
    if not matches:
        raise UnparsableError(f"no verdict in the answer: {reply.text[-80:]!r}")
    return _first_is_better(min(matches, key=lambda item: item[0])[1])


def _ranking(reply: Reply, model_1_name: str = "model_1") -> float:
    """Parse the first model's rank from a list of dicts."""
    try:
        if len(reply.text) > LONGEST_RANKING:
            raise ValueError("too long")
        (rank,) = [row["rank"] for row in ast.literal_eval(reply.text) if row["model"] == model_1_name][:1]
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError):
        raise UnparsableError(f"no ranking in the answer: {reply.text[:80]!r}") from None
    return _first_is_better(rank if rank in (1, 2) else None)


def _scores(reply: Reply) -> float:
    """Parse two scores from the first line, the first output's first."""
    line = reply.text.split("\n")[0]
    try:
        first, second = map(float, line[:LONGEST_SCORES].replace(",", " ").split(" "))
        if not (math.isfinite(first) and math.isfinite(second)):
            raise ValueError("no numbers")
    except ValueError:
        raise UnparsableError(f"no two scores in the first line: {reply.text[:80]!r}") from None
    return 0.5 if first == second else float(first > second)


def _first_is_better(verdict: object) -> float:
    known = {1: 1.0, 2: 0.0, 0: 0.5, 1.5: 0.5}
    if verdict not in known:
        raise UnparsableError(f"the verdict is neither 1 nor 2 but {verdict!r:.40}")
    return known[verdict]


PARSERS: dict[str, Callable[..., float]] = {
    "logprob_parser": _logprobs,
    "regex_parser": _regex,
    "ranking_parser": _ranking,
    "lmsys_parser": _scores,
}
