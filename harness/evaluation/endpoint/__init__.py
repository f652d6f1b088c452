"""Requests to an OpenAI-compatible endpoint, within a budget and once per question."""
