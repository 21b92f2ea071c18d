"""The configuration: what can be set, checks of what was set, and error messages about it."""
