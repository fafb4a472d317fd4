"""`mmdora study` compares methods over tasks, learning rates and seeds; each cell of its grid is an ordinary run."""
