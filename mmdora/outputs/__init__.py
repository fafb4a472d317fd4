"""What every command owes to its output folder: one writer at a time, no file of another's replaced, an orderly stop.

Nothing here knows what a file is for, and nothing here imports torch.
"""
