"""The one exception that means "the input is wrong, not the program"."""


class MmdoraError(ValueError):
    """A mistake in what the user handed in.

    The message is one line: what is wrong, where, and how to mend it. The command line prints that
    line and exits with code 2; Python callers catch it like any `ValueError`.
    """

    told = False
    """Another process of the run prints the line."""


class OutOfMemory(MmdoraError):  # noqa: N818 (as torch calls it)
    """A training step that fits neither the GPU nor, on a CPU, the host."""


class Interrupted(MmdoraError):  # noqa: N818 (nothing went wrong)
    """A run that was asked to stop by a signal, and did, with a checkpoint; `code` is the exit code (128 + signal)."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code
