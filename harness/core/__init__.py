"""What all rooms share: errors, configuration, prompts, the store, hashes. No torch at import."""
