"""fgctl: the operators' command line. `fgctl.cli` says what its exit codes mean.

Loading everything takes a second or so, in which Ctrl-C ends it as quietly as later.
"""

import sys

try:
    from fgctl.cli import run
except KeyboardInterrupt:
    sys.exit(130)


def main() -> None:
    """Run the command line of this process."""
    sys.exit(run())


if __name__ == "__main__":
    main()
