"""Run `vanilla-transformer score` from a checkout."""

import sys

from vanilla_transformer.cli import main

if __name__ == "__main__":
    main(["score", *sys.argv[1:]])
