"""What a model costs in use: prefill, one token, state and peak memory against the length of the context."""
