"""Public datasets to records, one module each."""
