"""Tests of the configs."""

from pathlib import Path

CONFIGS = Path(__file__).parents[2] / 'configs'
