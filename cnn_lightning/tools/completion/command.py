"""``cnn-lightning completion SHELL``: print the script of a shell."""

from importlib import import_module
from importlib.util import find_spec

from cnn_lightning.errors import UserError
from cnn_lightning.tools.completion import arguments


def main(args: list[str]) -> int:
    """Print the script.

    Raises:
        UserError: The package that writes it is missing.
    """
    shell = arguments.parser().parse_args(args).shell
    if find_spec("shtab") is None:
        raise UserError("completion: expected the package shtab, not found; pip install 'cnn-lightning[completion]'")
    tree = import_module("cnn_lightning.tools.completion.tree").tree()
    print(import_module("shtab").complete(tree, shell))
    return 0
