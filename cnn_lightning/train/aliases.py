"""Short names of the most used options, the same in every command that has the long one."""

from collections.abc import Collection, Sequence

ALIASES = {
    "net": "model.net",
    "layers": "model.layers",
    "lr": "model.lr",
    "epochs": "trainer.max_epochs",
    "batch_size": "data.batch_size",
}
"""Each short name and the option that it stands for."""


def usable(known: Collection[str]) -> dict[str, str]:
    """The aliases of a command with the options ``known``; an option of its own of such a name keeps its meaning."""
    return {alias: option for alias, option in ALIASES.items() if option in known and alias not in known}


def spelled_out(args: Sequence[str], known: Collection[str]) -> list[str]:
    """The arguments with each alias replaced by its option, in ``--alias value`` and ``--alias=value``.

    The order stays, so that the later of an alias, its option and a config wins.
    """
    found = {f"--{alias}": f"--{option}" for alias, option in usable(known).items()}
    end = args.index("--") if "--" in args else len(args)
    flags = [arg.partition("=") for arg in args[:end]]
    return [found.get(flag, flag) + equals + value for flag, equals, value in flags] + list(args[end:])
