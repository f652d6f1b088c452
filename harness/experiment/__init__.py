"""From an experiment file to cells with keys."""
