"""AlpacaEval 2.0: 805 instructions with the outputs of gpt-4-1106-preview ("gpt4_turbo"). For evaluation only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.core.config import TaskConfig
from harness.core.errors import UserError
from harness.core.prompt import Message
from harness.core.records import Sample
from harness.tasks.base import TaskData, register_task
from harness.tasks.formats import Dropped, ParsedRow, text_in
from harness.tasks.hub import read_hub_file
from harness.tasks.rows import Row, not_empty
from harness.tasks.sources import HUB_ID, read_packaged, read_rows
from harness.tasks.splits import read_task

FILE = "alpaca_eval_gpt4_baseline.json"
ACCEPTED = "instruction and output"


def outputs(samples: Sequence[Sample], name: str) -> list[dict[str, str]]:
    """Return a policy's responses in the format of `alpaca_eval --model_outputs model_outputs.json`."""
    return [{"instruction": s.prompt[-1].content, "output": s.response, "generator": name} for s in samples]


@register_task(
    "alpaca_eval",
    keep="start",
    baseline="the gpt4_turbo output",
    template="alpaca_eval",
    trains=False,
    outputs=outputs,
)
def load(config: TaskConfig) -> TaskData:
    """Read the packaged instructions, the file of tatsu-lab/alpaca_eval, or a local file or folder in its layout.

    The order is pseudo-random but fixed, so the first n questions are a fair sample of the five sources.
    """
    return read_task(_rows(config), parse, source=config.data, labels="no preferences")


def parse(row: Row) -> ParsedRow:
    """Return an instruction with its reference output. All rows are test questions, whatever the file is called."""
    instruction, output = text_in(row, "instruction", ACCEPTED), text_in(row, "output", ACCEPTED)
    if not instruction.strip():
        raise Dropped("empty prompt")
    if not output.strip():
        raise Dropped("empty completion")
    return ParsedRow((Message("user", instruction),), None, output.strip(), "test")


def _rows(config: TaskConfig) -> Iterator[Row]:
    if config.data == "packaged":
        return read_packaged("alpaca_eval", config.subset)
    local = Path(config.data).expanduser()
    if local.exists() or not HUB_ID.fullmatch(config.data) or config.data.endswith(".json"):
        # A copy of the hub's repository also has files with other models' outputs, so the right one is named.
        return read_rows(str(local / FILE) if (local / FILE).is_file() else config.data, config.subset)
    if config.subset:
        raise UserError(f"the hub data set {config.data!r} has no subsets for alpaca_eval; leave 'subset' out")
    return not_empty(read_hub_file(config.data, FILE), config.data)
