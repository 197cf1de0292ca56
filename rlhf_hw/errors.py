"""The one exception a user is meant to read."""


class UserError(Exception):
    """Bad input that the user can mend: shown as one line without a traceback, exit status 2.

    The message names the flag, file or row, says what was found there, and what to do about it.
    """
