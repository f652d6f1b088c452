"""Backbones: they turn data and a loss into a policy and its samples."""
