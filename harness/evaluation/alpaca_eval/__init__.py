"""AlpacaEval 2.0: its metrics, difficulties and annotators."""
