"""The two errors that users see. Each message is one line that says what to do."""


class TriptychError(Exception):
    """A failure of the program or the machine (disk full, no network): the command line exits with 1."""

    exit_code = 1


class InputError(TriptychError, ValueError):
    """Unusable input (a missing file, a hostile picture, an unknown model): the command line exits with 2."""

    exit_code = 2
