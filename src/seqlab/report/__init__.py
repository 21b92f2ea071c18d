"""Reports on many runs: tables, pictures and a page."""
