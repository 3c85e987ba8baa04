"""The error that this layer raises for users."""


class WeightsError(ValueError):
    """Weights that cannot be used, in one sentence: the file, what is wrong with it, the way out."""
