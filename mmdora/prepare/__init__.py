"""Turns official files into records: rows as streams, worker processes, bad rows, files of records, card, report."""
