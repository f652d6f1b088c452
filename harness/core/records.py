"""What a run leaves and a report reads."""

from __future__ import annotations

from dataclasses import asdict, dataclass

SFT = "sft"  # the row of the policy that every loss starts from
FAILED = "failed.json"


@dataclass(frozen=True)
class Failure:
    """Why a cell has no result: the stage that failed, its reason in one line, and the task and judge it worked for.

    `task` is "" where the stage concerns the cell's training, `judge` the name of a judge in a panel.
    """

    stage: str
    reason: str
    task: str = ""
    judge: str = ""
    traceback: str = ""

    @property
    def where(self) -> str:
        """The stage with its task and judge, in words."""
        return " ".join(filter(None, (self.stage, f"{self.task}@{self.judge}" if self.judge else self.task)))

    def as_json(self) -> dict:
        """Return the failure as `failed.json` holds it."""
        return asdict(self)
