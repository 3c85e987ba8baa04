"""Why a file is not read; damage is whatever else is raised. All modules of the reader import it, and none above."""


class RefusedGlobalError(ValueError):
    """A file needs a global that is not on the list; ``name`` is its full path."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = ascii(name[:200])[1:-1][:200]  # it came from the file, and goes to a terminal


class NotReadError(ValueError):
    """A file that may be whole, but is of a kind that is not read; the words say which, and the way out."""
