"""Adapted modules. Each keeps the base's parameter names and has the same verbs: wrap, forward, merge, unload."""
