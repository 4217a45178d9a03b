"""What can go wrong and be said in one line: bad input, and signals."""



class InputError(Exception):
    """Something the user can mend: one line that says what is wrong, where, and what to do."""


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM, and where that leaves things."""

    def __init__(self, number, message="interrupted"):
        super().__init__(message)
        self.number = number


def interrupt(number, frame):
    raise Interrupted(number)
