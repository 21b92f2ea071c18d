"""Benchmarks of the scan, the experts, a training step and inference."""
