"""Measuring, proving, drawing and showing: used by the commands, imports anything, promises nothing."""
