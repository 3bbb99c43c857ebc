"""The one error that a user's mistake becomes."""


class InputError(ValueError):
    """Something the user gave (a path, a file, a setting) is wrong.

    Programs print its text as one line and exit with code 2; any other exception is our own mistake
    and keeps its traceback. The text says where, what was given and what is allowed: lower case, one
    line, no full stop.
    """
