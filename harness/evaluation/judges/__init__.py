"""The built-in judges. Importing this registers them; their libraries are loaded when a judge is made."""

from harness.evaluation.judges import openai, preference_model

__all__ = ["openai", "preference_model"]
