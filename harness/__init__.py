"""A benchmark harness that compares preference-optimisation losses for language models."""
