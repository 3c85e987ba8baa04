"""Fixtures of the tests of hostile files."""

from tests.reliability.hostile import folder, here  # noqa: F401
