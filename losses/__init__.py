"""Preference-optimisation losses: pure functions of log-probs, in a registry.

>>> from losses import PreferenceBatch, get_loss
>>> batch = PreferenceBatch.from_logps(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
>>> get_loss("dpo")(batch, beta=0.1)  # one value per pair
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from losses.batch import History as History
    from losses.batch import Lists as Lists
    from losses.batch import MissingData as MissingData
    from losses.batch import PreferenceBatch as PreferenceBatch
    from losses.batch import Side as Side
    from losses.bounds import Bounds as Bounds
    from losses.modifiers import get_loss as get_loss
    from losses.modifiers import register_modifier as register_modifier
    from losses.needs import register_need as register_need
    from losses.registry import RegistryError as RegistryError
    from losses.rpo import register_weighting as register_weighting
    from losses.spec import Loss as Loss
    from losses.spec import list_losses as list_losses
    from losses.spec import register_loss as register_loss

_HOMES = {
    "Bounds": "losses.bounds",
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


def __getattr__(name: str) -> Any:
    """Load torch and the built-in losses on first use, so that commands which need neither start at once."""
    if name not in _HOMES:
        raise AttributeError(f"module 'losses' has no attribute {name!r}")
    if name != "RegistryError":
        importlib.import_module("losses.catalogue")
    return getattr(importlib.import_module(_HOMES[name]), name)
