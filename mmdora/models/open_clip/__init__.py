"""Makes vision towers of open_clip available as models of transformers."""
