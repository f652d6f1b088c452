"""Asking an OpenAI-compatible endpoint: within a budget, and for each question once."""
