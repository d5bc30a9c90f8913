"""The command `facegrid-router`."""

from router.command import main

if __name__ == "__main__":
    raise SystemExit(main())
