"""``cnn-lightning fit | validate | test | predict``: run one of them, and turn its end into an exit code."""

import os
import signal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.exceptions import SIGTERMException

from cnn_lightning.errors import EverywhereError, Stopped, UserError, one_line
from cnn_lightning.processes import is_first
from cnn_lightning.streams import print_line
from cnn_lightning.train.failures import original, readable
from cnn_lightning.train.noise import keep_quiet
from cnn_lightning.train.run import CLI


def main(args: list[str]) -> int:
    """Run one of Lightning's four commands.

    Returns:
        0, 2 in every process but the first after an error of all processes, or 128 and the number of a signal.

    Raises:
        UserError: A mistake of the user, or any other error that one line explains.
    """
    keep_quiet()
    try:
        CLI(args)
    except EverywhereError:
        if is_first():
            raise
        return 2
    except UserError as error:
        _, text = original(error)
        if text == str(error):
            raise
        raise UserError(text) from error  # of a process that loads data
    except Stopped as stop:
        if is_first():
            print_line(str(stop))
        return 128 + stop.number
    except SIGTERMException:  # raised by Lightning outside training, with exit code 0
        return 128 + signal.SIGTERM
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # which Lightning turns into exit code 1
            return 128 + signal.SIGINT
        raise
    except MisconfigurationException as error:
        raise UserError(f"trainer: {one_line(error)}") from error
    except ImportError as error:
        raise UserError(f"trainer: expected a package that is not here: {one_line(error)}") from error
    except (ValueError, TypeError, RuntimeError, OSError, IndexError, NotImplementedError, OverflowError) as error:
        if os.environ.get("CNN_LIGHTNING_TRACEBACK"):
            raise
        raise UserError(readable(error)) from error
    return 0
