"""The language model as a backbone: tokens, policies, log-probs, samples."""
