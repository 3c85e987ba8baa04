"""What a user did wrong, apart from our own bugs: the commands print it as one sentence and keep other tracebacks."""


class UserError(ValueError):
    """One sentence: the offending value, the rule, the way out.

    It is a ``ValueError`` because callers of the library expect one where an argument or a file is not usable. Only
    this class is printed without its traceback (see ``repnext_mm.cli.run``).
    """
