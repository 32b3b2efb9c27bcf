"""The bundle's entry point: serves the installed package on standard input and output."""

import sys

from layerdiffuse_mcp.cli.parser import main

if __name__ == "__main__":
    sys.exit(main([]))
