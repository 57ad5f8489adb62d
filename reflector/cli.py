"""The entry of the command line: exit codes, and errors as one line on stderr.

Imports no more than `--version` needs; `reflector.commands` has the commands and options.
"""

import sys
from collections.abc import Sequence

from reflector._version import __version__
from reflector.errors import ReflectorError, UsageError
from reflector.terminal import error_line, flush_output, open_standard_files

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with `arguments` (default: the process's own) and return its exit code."""
    open_standard_files()
    try:
        code = _dispatch(list(sys.argv[1:] if arguments is None else arguments))
    except UsageError as error:
        code = _fail(str(error), EXIT_USAGE)
    except ReflectorError as error:
        code = _fail(str(error), EXIT_FAILED)
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except BrokenPipeError:
        code = EXIT_OK
    except OSError as error:
        code = _fail(str(error), EXIT_FAILED)
    trouble = flush_output()
    return _fail(trouble, EXIT_FAILED) if trouble and code == EXIT_OK else code


def _dispatch(arguments: list[str]) -> int:
    if arguments == ["--version"]:
        print(f"reflector {__version__}")
        return EXIT_OK
    from reflector import commands

    return commands.dispatch(arguments)


def _fail(reason: str, code: int) -> int:
    error_line(f"reflector: {reason}")
    return code
