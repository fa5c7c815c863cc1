"""The options of ``cnn-lightning completion``."""

from typing import Literal

from jsonargparse import ArgumentParser

from cnn_lightning.tools import parser as parsers

DESCRIPTION = (
    "Print a script that completes commands, options and values. It is written once and loads no Python when it "
    "completes. Write it to: ~/.local/share/bash-completion/completions/cnn-lightning (bash), a folder of $fpath as "
    "_cnn-lightning (zsh), ~/.config/fish/completions/cnn-lightning.fish (fish)."
)


def parser() -> ArgumentParser:
    """The command's parser."""
    parser = parsers.make("completion", DESCRIPTION)
    parser.add_argument("shell", type=Literal["bash", "zsh", "fish"], help="whose script is printed")
    return parser
