"""The stages of a cell: one file each. `harness.run.cell` has them in their order."""
