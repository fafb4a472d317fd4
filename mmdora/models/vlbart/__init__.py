"""VL-BART: the model, its processor, its parts from other checkpoints, and its cache of image features."""
