"""What edgeapp.spec freezes, and what `python -m edgeapp` runs."""

from edgeapp.cli import main

if __name__ == "__main__":
    main()
