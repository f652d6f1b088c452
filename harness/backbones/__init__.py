"""Backbones: what turns data and a loss into a policy and its samples."""
