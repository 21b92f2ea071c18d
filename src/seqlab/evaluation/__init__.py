"""Evaluating language models as others quote it: perplexity of a text, and tasks of lm-evaluation-harness."""
