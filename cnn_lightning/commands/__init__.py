"""The subcommands of our own, one file each."""
