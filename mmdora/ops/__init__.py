"""The mathematics, on plain tensors: no module, no config and no file. Read `reference` first; the rest is faster.

Every file of this folder uses the same letters for dimensions: T rows of input (the tokens of all sequences), I input
features, O output features, R rank. `V = W0 + s B A` is the adapted direction, and `n` [O] holds the norms of its rows.
"""
