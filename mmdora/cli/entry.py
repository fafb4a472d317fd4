"""From arguments to an exit code."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable

from cyclopts import CycloptsError

from mmdora.cli.app import app
from mmdora.env import wait_passively
from mmdora.errors import Interrupted, MmdoraError


def main(tokens: Iterable[str] | None = None) -> int:
    """Run the command line and return its exit code; a user's mistake gives one line on stderr and the code 2."""
    wait_passively()
    try:
        result = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
        if isinstance(result, dict):  # the number of records per split that `mmdora prep NAME` wrote
            print(", ".join(f"{split}: {count:,} records" for split, count in result.items()))
        sys.stdout.flush()  # What is still buffered meets a closed pipe here, where that is handled, not at the exit.
    except Interrupted as stopped:
        if not stopped.told:
            print(stopped, file=sys.stderr)
        return stopped.code
    except MmdoraError as error:
        return 2 if error.told else _fail(str(error))
    except CycloptsError as error:
        return _fail(str(error))
    except BrokenPipeError:  # the reader of the output, such as `head`, wants no more of it
        # Python would otherwise complain when it closes the output at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno is None:  # it does not come from the operating system
            raise
        return _fail(f"{error.filename or 'input/output'}: {error.strerror}")
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    return 0


def _fail(message: str) -> int:
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(message.split()))
    print(f"mmdora: error: {shown}", file=sys.stderr)  # without control characters from a file
    return 2
