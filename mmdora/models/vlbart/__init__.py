"""VL-BART: the model, its processor, tools that make it from other checkpoints, and its cache of image features."""
