"""The statistics of comparison."""
