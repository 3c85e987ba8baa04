"""The error that this layer raises for users."""

from repnext_mm.errors import UserError


class WeightsError(UserError):
    """Weights that cannot be used, in one sentence: the file, what is wrong with it, the way out."""
