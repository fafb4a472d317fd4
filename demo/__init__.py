"""The page: several models answer the same question side by side."""
