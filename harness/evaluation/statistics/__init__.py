"""Statistics for comparing policies."""
