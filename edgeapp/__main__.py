"""What edgeapp.spec freezes, and what `python -m edgeapp` runs."""

import sys
from typing import NoReturn

from edgeapp import headstart


def main() -> NoReturn:
    """Run the program and exit."""
    headstart.begin(sys.argv[1:])

    from edgeapp.cli import main

    main()


if __name__ == "__main__":
    main()
