"""The two ways in which a command ends early: bad input, and a signal."""


class InputError(Exception):
    """An error that the user can fix: one line with what is wrong, where, and what to do."""


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM. number: the signal's. message: how to resume."""

    def __init__(self, number, message="interrupted"):
        super().__init__(message)
        self.number = number


def interrupt(number, frame):
    """A signal handler that raises Interrupted."""
    raise Interrupted(number)
