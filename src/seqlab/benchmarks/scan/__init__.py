"""What scripts/benchmark_scan.py measures (contestants), what comes of it (results) and how it is shown (report)."""
