"""What every `mmdora prep NAME` shares: streamed rows, processes, bad rows, records files, card and report."""
