import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from harness.core.config import TaskConfig
from harness.tasks import TASKS


@pytest.fixture
def write(tmp_path):
    """Write rows to a file under tmp_path, in the format of its extension; return its path."""

    def write_rows(name, rows):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
            return path
        lines = "".join(json.dumps(row) + "\n" for row in rows) if "jsonl" in name else json.dumps(rows, indent=1)
        with gzip.open(path, "wt") if path.suffix == ".gz" else open(path, "w") as file:
            file.write(lines)
        return path

    return write_rows


@pytest.fixture
def load():
    """Load a task by name, as an experiment does."""

    def load_task(kind, data="packaged", subset=None):
        return TASKS.get(kind).load(TaskConfig(kind=kind, data=str(data), subset=subset))

    return load_task
