"""Run `vanilla-transformer export` from a checkout."""

import sys

from vanilla_transformer.cli import main

if __name__ == "__main__":
    main(["export", *sys.argv[1:]])
