"""Records: what a row of a dataset is, and how files of records are read."""
