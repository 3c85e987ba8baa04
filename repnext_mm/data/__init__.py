"""Data: what reads, checks and makes it."""
