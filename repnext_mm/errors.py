"""What a user did wrong, apart from our own bugs: the commands print it as one sentence and keep other tracebacks."""


class UserError(ValueError):
    """One sentence: the offending value, the rule, the way out.

    It is a ``ValueError`` because callers of the library expect one where an argument or a file is not usable. Only
    this class is printed without its traceback (see ``repnext_mm.cli.run``).
    """


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that a user named does not exist."""


class FileInTheWayError(UserError, FileExistsError):
    """What a user asked for would replace a file or folder that holds something else."""


class NotWrittenError(UserError, OSError):
    """A file could not be written: the disk is full, or the folder takes no file."""


class MissingPackageError(UserError, ImportError):
    """What a user asked for needs a package that is not installed."""


class WeightsError(UserError):
    """Weights that cannot be used, in one sentence: the file, what is wrong with it, the way out."""


class NotDownloadedError(WeightsError, MissingFileError):
    """A weight file is not on this machine, and did not come from its address."""
