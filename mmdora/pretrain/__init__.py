"""What made the bundled bases: their architecture and the first training of their towers."""
