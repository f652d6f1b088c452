"""The command line: python -m harness COMMAND."""

from harness.cli.main import main
from harness.core.exits import leave

if __name__ == "__main__":
    leave(main())
