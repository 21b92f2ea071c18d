"""Measuring, and reading what runs have left."""
