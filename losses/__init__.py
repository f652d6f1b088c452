"""Preference-optimisation losses: pure functions of log-probs, in a registry.

>>> from losses import PreferenceBatch, get_loss
>>> batch = PreferenceBatch.from_logps(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
>>> get_loss("dpo")(batch, beta=0.1)  # one value per pair
"""

import importlib

_HOMES = {
    "History": "losses.batch",
    "Lists": "losses.batch",
    "Loss": "losses.spec",
    "MissingData": "losses.batch",
    "PreferenceBatch": "losses.batch",
    "RegistryError": "losses.registry",
    "Side": "losses.batch",
    "get_loss": "losses.modifiers",
    "list_losses": "losses.spec",
    "register_loss": "losses.spec",
    "register_modifier": "losses.modifiers",
    "register_need": "losses.needs",
    "register_weighting": "losses.rpo",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    """Load torch and the built-in losses on first use, so that commands which need neither start at once."""
    if name not in _HOMES:
        raise AttributeError(f"module 'losses' has no attribute {name!r}")
    if name != "RegistryError":
        importlib.import_module("losses.catalogue")
    return getattr(importlib.import_module(_HOMES[name]), name)
