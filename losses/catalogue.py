"""Importing this module registers the built-in losses, in the order in which listings show them."""

from losses import dpo, ipo, rpo

__all__ = ["dpo", "ipo", "rpo"]
