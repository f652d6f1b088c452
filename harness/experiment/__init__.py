"""Turns an experiment file into cells with keys."""
