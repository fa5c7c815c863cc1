"""The options of ``cnn-lightning sweep``."""

from cnn_lightning.train.messages import OneLine

DESCRIPTION = (
    "Train with options from a search space, and find the best ones. The section sweep of the config says what is "
    "searched; --config sweep is an example. All other options, in configs or as flags, are those of fit and hold for "
    "every trial; cnn-lightning fit --help lists them. The same command continues a sweep that was stopped or killed, "
    "and started twice it shares the trials."
)
OWN = {
    "trials": "number of trials of the whole sweep",
    "timeout": "begin no trial after so many seconds",
    "metric": "what is measured after each epoch, as val_acc or val_loss",
    "direction": "max or min; by default what fits the metric",
    "sampler": "tpe or random",
    "pruner": "median, halving, hyperband or none",
    "seed": "of the choice of options; --seed_everything is that of each training",
}
"""The settings that have a flag, and their help."""


def parser() -> OneLine:
    """The parser of the command's own options; the others are those of ``fit``."""
    parser = OneLine(prog="cnn-lightning sweep", description=DESCRIPTION)
    for name, words in OWN.items():
        parser.add_argument(f"--{name}", help=words)
    parser.add_argument("--folder", help="the sweep's folder; by default the next free one, runs/DATA/sweep_N")
    return parser
