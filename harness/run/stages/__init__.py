"""The stages of a cell, one file each. `harness.run.cell` lists them in order."""
