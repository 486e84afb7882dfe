"""Measured speed and memory: every number in the documents comes from a command in here."""
