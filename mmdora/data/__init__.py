"""Records, images, prompts and batches."""
