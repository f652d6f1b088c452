"""The checks that every loss must pass."""
