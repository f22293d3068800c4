"""What edgeapp.spec freezes, and what `python -m edgeapp` runs."""

import sys
from typing import NoReturn

from edgeapp import headstart, memory


def main() -> NoReturn:
    """Run the program and exit."""
    memory.keep_freed()  # before any thread: each would get an arena of its own
    headstart.begin(sys.argv[1:])

    from edgeapp.cli import main

    main()


if __name__ == "__main__":
    main()
