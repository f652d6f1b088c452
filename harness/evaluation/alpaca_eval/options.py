"""The settings of AlpacaEval 2.0's judge."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from harness.evaluation.endpoint.options import EndpointOptions


@dataclass
class AlpacaEvalOptions(EndpointOptions):
    """The settings under `judge:` in an experiment file."""

    model: str = ""  # "": the annotator's own
    annotator: str = "weighted_alpaca_eval_gpt4_turbo"  # one of alpaca-eval's by name, or a folder or file like theirs
    request: dict[str, Any] = field(default_factory=dict)  # changes to its request; null fields are not sent
    engine: Literal["harness", "official"] = "harness"  # what sends the requests; official: the package itself
    difficulty: Literal["auto", "official", "estimated"] = "auto"  # auto: the official table if available
