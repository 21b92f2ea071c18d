"""The configuration: what can be set, what is wrong with what was set, and how to say it."""
