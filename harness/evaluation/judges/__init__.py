"""The built-in judges. Importing this module registers them; their libraries are loaded when a judge is made."""

from harness.evaluation.judges import alpaca_eval, gold, hf_pairwise, openai, preference_model, reward_model

__all__ = ["alpaca_eval", "gold", "hf_pairwise", "openai", "preference_model", "reward_model"]
