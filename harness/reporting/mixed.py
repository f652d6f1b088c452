"""Whether the policies of a report were computed alike: with the same versions, device and numerical choices.

These are in no key: a store that moves to another machine would otherwise be computed again for differences in the last
digits. They are kept with every policy instead, and a report says where they differ.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from harness.core.errors import UserError
from harness.core.record_files import read_record
from harness.core.records import SFT, TRAIN, Environment
from harness.reporting.cell_files import ExperimentFiles

PACKAGES = ("torch", "transformers", "peft", "python")  # whose versions change numbers


def mixed_lines(folder: Path) -> list[str]:
    """Return a line for each way in which the policies behind a results folder's report were not computed alike.

    What cannot be read of it has a line too.
    """
    files = ExperimentFiles(Path(folder))
    starts = [files.store / SFT / key for key in files.plan.starts.values()] if files.plan else []
    policies = [*starts, *(cell.folder / TRAIN for cell in files.planned)]
    made, lines = [], []
    for policy in policies:
        if (policy / Environment.FILE).is_file():
            try:
                made.append(_choices(read_record(Environment, policy)))
            except UserError as error:  # it makes no number of the report worse
                lines.append(str(error))
    for name in dict.fromkeys(name for choices in made for name in choices):
        counts = Counter(choices[name] for choices in made if name in choices)
        if len(counts) > 1:
            told = ", ".join(f"{value} ({count} of {sum(counts.values())})" for value, count in counts.most_common())
            lines.append(f"the policies of this report differ in {name}: {told}; their numbers may differ by rounding")
    return lines


def _choices(environment: Environment) -> dict[str, str]:
    versions = {name: str(environment.versions[name]) for name in PACKAGES if environment.versions.get(name)}
    return {**environment.numerics, **versions}
