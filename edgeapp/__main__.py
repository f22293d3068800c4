"""What edgeapp.spec freezes, and what `python -m edgeapp` runs."""

import sys

from edgeapp import headstart

if __name__ == "__main__":
    headstart.begin(sys.argv[1:])

    from edgeapp.cli import main

    main()
