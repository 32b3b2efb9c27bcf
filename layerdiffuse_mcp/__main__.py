"""`python -m layerdiffuse_mcp` is the command line."""

import sys

from layerdiffuse_mcp.cli.parser import main

if __name__ == "__main__":
    sys.exit(main())
