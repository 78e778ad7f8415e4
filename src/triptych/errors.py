"""The two kinds of failure a person sees, each one line that says what to do."""


class TriptychError(Exception):
    """A failure of our own or of the machine (disk full, no network): the command line exits 1."""

    exit_code = 1


class InputError(TriptychError, ValueError):
    """Input that cannot be used (a missing file, a hostile picture, an unknown model): the command line exits 2."""

    exit_code = 2
