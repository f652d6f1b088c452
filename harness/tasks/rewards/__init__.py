"""Known rewards: functions from a prompt and a response to a number."""
