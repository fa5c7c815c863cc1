"""Completion of the command line in bash, zsh and fish, by a script that loads nothing."""
