"""The one exception that ends a command with a single line for its reader."""


class UserError(ValueError):
    """A mistake of the caller that one line can explain: what was expected, what came, and the remedy.

    The command line prints it without a traceback and exits with code 2.
    """
