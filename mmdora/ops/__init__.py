"""The mathematics, on plain tensors: no module, no config, no file.

Dimensions, in every file of this folder: T rows of input (tokens of all sequences), I input
features, O output features, R rank. `V = W0 + s B A` is the adapted direction, `n` its row norms.
"""
