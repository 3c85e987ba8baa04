"""Figures of the design and of what networks attend to."""
