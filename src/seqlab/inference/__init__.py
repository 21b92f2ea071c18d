"""Using trained models: sampling text."""
