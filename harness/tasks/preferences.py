"""Any preference data in the standard formats: a local file or folder, or a hub data set."""

from __future__ import annotations

from harness.core.config import TaskConfig
from harness.core.errors import UserError
from harness.tasks.base import TaskData, register_task
from harness.tasks.formats import ACCEPTED, parse_standard
from harness.tasks.sources import read_rows
from harness.tasks.splits import read_task


@register_task("preferences", keep="end", baseline="the chosen response", template="hh")
def load(config: TaskConfig) -> TaskData:
    """Read the data set that `data` names, paired or unpaired; see `harness.tasks.formats` for the accepted formats."""
    if config.data == "packaged":
        raise UserError(
            f"the task 'preferences' has no packaged data; name a file, a folder or a hub id in 'data' ({ACCEPTED})"
        )
    rows = read_rows(config.data, config.subset)
    return read_task(rows, parse_standard, source=config.data, labels="the data set's labels")
