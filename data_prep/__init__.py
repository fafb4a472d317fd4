"""Public datasets, one module each; `table` lists them."""
