"""From arguments to an exit code."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable

from cyclopts import CycloptsError

from mmdora.cli.app import app
from mmdora.errors import Interrupted, MmdoraError


def main(tokens: Iterable[str] | None = None) -> int:
    """Run the command line; a user's mistake is one line on stderr and exit code 2."""
    try:
        result = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
        if isinstance(result, dict):  # what a dataset's `prepare` wrote
            print(", ".join(f"{split}: {count:,} records" for split, count in result.items()))
    except Interrupted as stopped:
        if not stopped.told:
            print(stopped, file=sys.stderr)
        return stopped.code
    except MmdoraError as error:
        return 2 if error.told else _fail(str(error))
    except CycloptsError as error:
        return _fail(str(error))
    except BrokenPipeError:  # who reads the output, such as `head`, has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at its end
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno is None:  # not from the operating system
            raise
        return _fail(f"{error.filename or 'input/output'}: {error.strerror}")
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    return 0


def _fail(message: str) -> int:
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(message.split()))
    print(f"mmdora: error: {shown}", file=sys.stderr)  # a file's control characters are no terminal's
    return 2
