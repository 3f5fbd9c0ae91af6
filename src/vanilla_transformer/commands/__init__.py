"""The commands of `vanilla-transformer`: arguments in, one call, words out."""
