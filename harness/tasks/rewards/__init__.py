"""Rewards that are known: functions from a prompt and a response to a number."""
