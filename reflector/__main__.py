"""``python -m reflector``: the same as the ``reflector`` command."""

import sys

from reflector.cli import main

if __name__ == "__main__":
    sys.exit(main())
