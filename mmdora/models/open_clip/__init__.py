"""Vision towers of open_clip as modules of transformers."""
