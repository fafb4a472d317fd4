"""Makes the bundled bases: their architectures, and the first training of their vision towers."""
