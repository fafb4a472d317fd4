"""The one exception that means "the input is wrong, not the program"."""


class MmdoraError(ValueError):
    """A mistake in what the user handed in.

    The message is one line: what is wrong, where, and how to mend it. The command line prints that
    line and exits with code 2; Python callers catch it like any `ValueError`.
    """

    told = False
    """Whether another process of the run prints the line, so that it appears once."""


class OutOfMemory(MmdoraError):  # noqa: N818 (as torch calls it)
    """A training step needs more memory than its device (the GPU, or the host for a run on the CPU) has."""


class Interrupted(MmdoraError):  # noqa: N818 (nothing went wrong)
    """A signal asked the run to stop, and it stopped after saving a checkpoint; `code` is 128 + the signal's number."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code
