"""A sweep: every mistake is one line before anything trains, and no trial is lost or done twice."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Trainer

pytest.importorskip("optuna")

from cnn_lightning.checkpoints import read_checkpoint
from cnn_lightning.cli import main
from cnn_lightning.errors import UserError
from cnn_lightning.signals import process_kept
from cnn_lightning.tools.sweep import results
from cnn_lightning.tools.sweep.folder import Sweep, Taken, find, keep_optuna_quiet
from cnn_lightning.tools.sweep.journal import Journal
from cnn_lightning.tools.sweep.options import Options, read_options
from cnn_lightning.tools.sweep.reports import Reports
from cnn_lightning.tools.sweep.settings import read_settings
from cnn_lightning.tools.sweep.trial import outcome
from cnn_lightning.train.noise import keep_quiet
from tests.processes import noise, until

pytestmark = pytest.mark.usefixtures("empty_folder")
NOTHING: dict[str, Any] = {}
SPACE = {"model.lr": {"low": "1e-4", "high": "1e-1", "log": True}, "model.optimizer": ["adamw", "sgd"]}
SMALL = {"channels": [2], "hidden": 4}
SWEEP = [sys.executable, "-m", "cnn_lightning", "sweep", "--config", "mine.yaml"]
SHORT = {
    "max_epochs": 1,
    "limit_train_batches": 2,
    "limit_val_batches": 1,
    "limit_test_batches": 1,
    "enable_progress_bar": False,
}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # as the command does
    keep_quiet()
    keep_optuna_quiet()


def write(space: Any = None, sweep: Any = None, trainer: Any = None, name: str = "mine.yaml", **more: Any) -> str:
    """A config of a sweep of tiny trainings."""
    content = {
        "sweep": {"trials": 2, "space": SPACE if space is None else space, **(sweep or {})},
        "model": SMALL,
        "trainer": SHORT | (trainer or {}),
        "pictures": False,
    }
    Path(name).write_text(yaml.safe_dump(content | more, sort_keys=False))
    return name


def opened(trials: int = 2, path: str = "runs/digits/sweep_0", **settings: Any) -> Sweep:
    """The sweep in a folder."""
    Path(path).mkdir(parents=True, exist_ok=True)
    return Sweep(Path(path), read_settings({"space": SPACE, "trials": trials, **settings}))


def ended(sweep: Sweep, *values: float, reason: str = "") -> Taken:
    """A trial that had these values and ended."""
    taken = sweep.take()
    assert taken is not None
    for epoch, value in enumerate(values):
        sweep.report(taken.number, epoch, value)
    sweep.end(taken.number, reason)
    taken.lock.leave(empty=False)
    return taken


def weights(path: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = read_checkpoint(path)["state_dict"]
    return found


def trained(sweep: Sweep) -> list[tuple[Any, ...]]:
    """Options and values of all trials."""
    return [
        (trial.number, trial.state.name, trial.params, trial.value, trial.intermediate_values)
        for trial in sweep.trials()
    ]


def expect_equal_weights(a: Sweep, b: Sweep) -> None:
    for trial in a.trials():
        ours, theirs = (weights(each.folder(trial.number) / "checkpoints/last.ckpt") for each in (a, b))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), trial.number


# ---- the space and the settings


MISTAKES = [
    ({"model.lrr": [1]}, NOTHING, "sweep.space: --model.lrr: expected an option of fit; did you mean --model.lr?"),
    ({"model.lr": {"low": 2, "high": 1}}, NOTHING, "sweep.space.model.lr.low: expected at most high, 1, got 2"),
    ({"model.lr": {"low": 0, "high": 1, "log": True}}, NOTHING, "sweep.space.model.lr.low: expected above 0"),
    ({"model.lr": {"low": "x", "high": 1}}, NOTHING, "sweep.space.model.lr.low: expected a number, got 'x'"),
    ({"model.lr": {"low": True, "high": 1}}, NOTHING, "sweep.space.model.lr.low: expected a number, got True"),
    ({"model.lr": {"low": 1, "high": float("inf")}}, NOTHING, "sweep.space.model.lr.high: expected a number, got inf"),
    ({"model.lr": {"low": 1}}, NOTHING, "sweep.space.model.lr: expected a list of choices, or a mapping with low"),
    ({"model.lr": {"low": 1, "high": 2, "stpe": 1}}, NOTHING, "got 'stpe'; did you mean step?"),
    ({"model.lr": {"low": 1, "high": 2, "log": 1}}, NOTHING, "sweep.space.model.lr.log: expected true or false"),
    ({"model.lr": {"low": 1, "high": 2, "step": 0}}, NOTHING, "sweep.space.model.lr.step: expected above 0, got 0"),
    ({"model.lr": {"low": 1, "high": 2, "step": 1, "log": True}}, NOTHING, "step: expected none, because log is true"),
    ({"model.lr": []}, NOTHING, "sweep.space.model.lr: expected at least one choice, got an empty list"),
    ({"model.lr": [1, 1]}, NOTHING, "sweep.space.model.lr: expected different choices, got 1 twice"),
    ({"model.lr": ["fast"]}, NOTHING, "sweep.space: model.lr: expected a number, got 'fast'"),
    ({"model.optimizer": ["adamw", "sgdd"]}, NOTHING, "sweep.space: model.optimizer: expected"),
    ({"data.batch_size": {"low": 1.5, "high": 8}}, NOTHING, "sweep.space: data.batch_size: expected a whole number"),
    ({"model.channels": [[4]]}, NOTHING, "model.channels: expected no value, because sweep.space has it"),
    ({"early_stopping": [0]}, NOTHING, "sweep.space: early_stopping: expected at least 1, got 0"),
    ({"trainer.logger": [False]}, NOTHING, "trainer.logger: expected trials that leave a folder each, got false"),
    ({"ckpt_path": ["a.ckpt"]}, NOTHING, "ckpt_path: expected"),
    ({}, NOTHING, "sweep.space: expected a mapping of options of fit"),
    (None, {"trials": 0}, "sweep.trials: expected a whole number from 1"),
    (None, {"trials": "many"}, "sweep.trials: expected a number, got 'many'"),
    (None, {"trails": 3}, "sweep.trails: expected one of space, trials,"),
    (None, {"metric": "loss"}, "sweep.metric: expected a number of the validation"),
    (None, {"direction": "up"}, "sweep.direction: expected max or min, got 'up'"),
    (None, {"pruner": "medan"}, "got 'medan'; did you mean median?"),
    (None, {"timeout": -1}, "sweep.timeout: expected above 0 seconds"),
    (None, {"seed": -1}, "sweep.seed: expected a whole number from 0"),
]


@pytest.mark.parametrize(("space", "sweep", "words"), MISTAKES, ids=[words[:60] for _, _, words in MISTAKES])
def test_a_mistake_is_one_line_before_anything_trains(space: Any, sweep: Any, words: str, capsys: Any) -> None:
    assert main(["sweep", "--config", write(space, sweep)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cnn-lightning: error: ")
    assert words in line
    assert not Path("runs").exists()


FLAGS = [
    (["--model.lr", "0.1"], "model.lr: expected no value, because sweep.space has it, got one; leave one of both out"),
    (["--trials", "x"], "sweep.trials: expected a number, got 'x'"),
    (["--model.lrr", "1"], "--model.lrr: expected an option of fit"),
    (["--ckpt_path", "last"], "ckpt_path: expected none, because trials begin anew, got 'last'"),
    (["--trainer.fast_dev_run", "true"], "trainer.fast_dev_run: expected trials that leave a folder each, got"),
    (["--trainer.logger", "false"], "trainer.logger: expected trials that leave a folder each, got false"),
    (["--trainer.barebones", "true"], "trainer.barebones: expected trials that leave a folder each, got true"),
    (["--folder", "nosuch/a/../../mine.yaml/b"], "sweep: can't write to"),
]


@pytest.mark.parametrize(("flags", "words"), FLAGS, ids=[flags[0] for flags, _ in FLAGS])
def test_a_mistake_in_a_flag_is_one_line(flags: list[str], words: str, capsys: Any) -> None:
    assert main(["sweep", "--config", write(), *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert not Path("runs").exists()


def test_configs_of_the_wrong_kind(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["sweep", "--config", "mnist"]) == 2
    assert (
        "sweep: expected a config with a section sweep, as --config sweep has one, got none" in capsys.readouterr().err
    )
    assert main(["sweep"]) == 2
    assert "sweep: expected a config with a section sweep" in capsys.readouterr().err
    for command in ("fit", "test"):
        assert main([command, "--config", write()]) == 2
        error = capsys.readouterr().err
        assert "config: mine.yaml describes a sweep: cnn-lightning sweep --config mine.yaml runs it" in error
        assert error.count("\n") == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["sweep", "--config", write()]) == 2
    assert "sweep: expected to be started once" in capsys.readouterr().err


def test_without_optuna_one_line_says_what_to_install(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnn_lightning.tools.sweep.command.find_spec", lambda name: None)
    assert main(["sweep", "--config", "sweep"]) == 2
    assert "sweep: expected Optuna, which is not here: pip install 'cnn-lightning[sweep]'" in capsys.readouterr().err


def test_the_help_names_every_flag(capsys: Any) -> None:
    assert main(["sweep", "--help"]) == 0
    out = capsys.readouterr().out
    for name in ("--trials", "--timeout", "--metric", "--pruner", "--seed", "--folder"):
        assert name in out


def test_values_reach_fit_as_they_are_written() -> None:
    """1e-4 is text for YAML 1.1; whole numbers stay whole; a choice may be anything."""
    layers = [{"conv1": "torch", "*": "numpy"}, "torch"]
    space = {
        "model.lr": {"low": "1e-4", "high": 1},
        "data.batch_size": {"low": 32, "high": 130, "step": 32},
        "model.layers": layers,
        "early_stopping": [None, 2],
        "model.compile": [False],
        "model.weight_decay": ["1e-4"],
    }
    options = read_options(["--config", write(space), "--trainer.max_epochs", "3"], {"trials": 7})
    assert (options.settings.trials, options.base["trainer"]["max_epochs"], options.data) == (7, 3, "digits")
    assert options.settings.space["data.batch_size"].candidates == [32, 128]
    assert options.settings.space["model.lr"].candidates == [1e-4, 1.0]
    sweep = Sweep(find(options, None), options.settings)
    kept = [sweep.take() for _ in range(7)]
    assert None not in kept
    drawn = [sweep.values_of(trial) for trial in sweep.trials()]
    assert {type(each["data.batch_size"]) for each in drawn} == {int}
    assert all(each["data.batch_size"] in (32, 64, 96, 128) and 1e-4 <= each["model.lr"] <= 1 for each in drawn)
    assert all(each["model.layers"] in layers and each["early_stopping"] in (None, 2) for each in drawn)
    assert any(isinstance(each["model.layers"], dict) for each in drawn)
    assert len({each["model.lr"] for each in drawn}) == 7  # a seed for each trial, not one for each process


def test_the_shipped_config_is_read() -> None:
    options = read_options(["--config", "sweep"], NOTHING)
    assert list(options.settings.space) == ["model.lr", "model.optimizer", "model.channels", "data.batch_size"]


def test_the_direction_fits_the_metric() -> None:
    assert read_settings({"space": SPACE}).direction == "max"
    assert read_settings({"space": SPACE, "metric": "val_loss"}).direction == "min"
    assert read_settings({"space": SPACE, "metric": "val_loss", "direction": "max"}).direction == "max"
    assert read_settings({"space": SPACE, "pruner": None}).pruner == "none"


# ---- which process runs which trial


def test_two_processes_never_have_the_same_trial() -> None:
    first, second = opened(), opened()
    a, b = first.take(), second.take()
    assert a is not None
    assert b is not None
    assert [a.number, b.number] == [0, 1]
    assert second.take() is None
    assert second.work() == "others"
    a.lock.leave(empty=False)  # as the kernel does when its process is killed
    assert second.work() == "some"
    again = second.take()
    assert again is not None
    assert (again.number, again.args, again.resumed) == (0, a.args, False)
    for taken in (again, b):
        second.report(taken.number, 0, 0.5)
        second.end(taken.number)
        taken.lock.leave(empty=False)
    assert first.work() == "none"


def test_a_trial_that_was_killed_before_it_had_options_gets_them() -> None:
    sweep = opened()
    sweep.storage.create_new_trial(0)
    taken = sweep.take()
    assert taken is not None
    assert taken.number == 0
    assert len(sweep.values_of(sweep.trials()[0])) == 2


def test_what_a_trial_without_a_checkpoint_wrote_is_removed() -> None:
    sweep = opened()
    taken = sweep.take()
    assert taken is not None
    (taken.folder / "metrics.csv").write_text("epoch,step\n0,1\n")
    (taken.folder / "checkpoints").mkdir()
    (taken.folder / "checkpoints/last.ckpt").write_text("cut")
    taken.lock.leave(empty=False)
    assert sweep.take() is not None
    assert sorted(path.name for path in taken.folder.iterdir()) == [".lock", ".owner"]


def test_a_trial_whose_process_died_without_a_word_has_failed() -> None:
    sweep = opened()
    a = sweep.take()
    assert a is not None
    sweep.end_if_left(0, "killed")
    assert sweep.trials()[0].state.name == "RUNNING"  # another process has it
    a.lock.leave(empty=False)
    sweep.end_if_left(0, "killed")
    assert results.ending(sweep, sweep.trials()[0]) == "failed: killed"


def test_the_best_epoch_counts_and_the_median_prunes() -> None:
    sweep = opened(trials=9)
    for _ in range(5):
        ended(sweep, 0.5, 0.9, 0.7)
    assert sweep.trials()[0].value == 0.9
    taken = sweep.take()
    assert taken is not None
    assert not sweep.report(taken.number, 0, 0.6)
    assert sweep.report(taken.number, 1, 0.1)
    sweep.end(taken.number)
    assert results.ending(sweep, sweep.trials()[5]) == "val_acc 0.6000, pruned after epoch 2"
    assert [trial.number for trial in results.ranked(sweep)] == [0, 1, 2, 3, 4]
    small = opened(path="other", metric="val_loss")
    ended(small, 0.5, 0.2, 0.3)
    assert small.trials()[0].value == 0.2


def test_the_same_description_is_the_same_sweep() -> None:
    def folder(*flags: str, name: str = "mine.yaml", at: Path | None = None) -> str:
        options: Options = read_options(["--config", name, *flags], {"trials": 3})
        return find(options, at).name

    write()
    assert folder() == folder() == "sweep_0"
    assert folder("--model.hidden", "5") == "sweep_1"
    assert folder() == "sweep_0"
    write(sweep={"trials": 50, "timeout": 5})
    assert folder() == "sweep_0"
    assert folder(name="runs/digits/sweep_0/sweep.yaml") == "sweep_0"
    write(sweep={"seed": 1})
    assert folder() == "sweep_2"
    assert folder(at=Path("here")) == "here"
    with pytest.raises(UserError, match="--folder: expected the folder of this sweep or none, got runs/digits/sweep_0"):
        folder(at=Path("runs/digits/sweep_0"))


# ---- the journal


def test_a_line_that_was_cut_is_removed_and_damage_is_told(tmp_path: Path) -> None:
    sweep = opened()
    ended(sweep, 0.5)
    path = sweep.path / "journal.log"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code":4,"wor')
    again = opened()
    assert again.trials()[0].value == 0.5
    ended(again, 0.7)
    assert [trial.value for trial in opened().trials()] == [0.5, 0.7]
    for damaged in (whole.replace(b"0.5", b"0.6"), whole.replace(b"{", b"[", 1), b"3\n" + whole, b"\xff\n" + whole):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"journal.log: line \d+ is damaged: put a copy of the file back") as told:
            opened().trials()
        assert "\n" not in str(told.value)


def test_the_journal_is_read_by_optunas_own_tools() -> None:
    from optuna import load_study
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    sweep = opened()
    ended(sweep, 0.5)
    study = load_study(study_name="sweep", storage=JournalStorage(JournalFileBackend(str(sweep.path / "journal.log"))))
    assert study.best_value == 0.5
    assert all(isinstance(json.loads(line), dict) for line in (sweep.path / "journal.log").read_text().splitlines())
    assert list(Journal(sweep.path / "journal.log").read_logs(0))


# ---- results


def test_pictures_and_tables_of_any_number_of_trials(capsys: Any) -> None:
    sweep = opened(trials=30)
    ended(sweep, reason="out of memory")
    with pytest.raises(UserError, match="no trial of runs/digits/sweep_0 has a value; trial 0: out of memory"):
        results.write(sweep)
    for values in ([0.5], [0.5], [index / 20 for index in range(12)]):
        for value in values:
            taken = ended(sweep, value)
            (taken.folder / "config.yaml").write_text(f"# {taken.number}\n")
        results.write(sweep)
        out = capsys.readouterr().out
        assert max(map(len, out.splitlines())) <= 80
        assert (sweep.path / "importances.png").stat().st_size > 1000
        assert (sweep.path / "history.png").stat().st_size > 1000
    assert (sweep.path / "best.yaml").read_text() == "# 14\n"
    assert "15 trials: 14 done, 1 failed" in out
    assert "best: trial 14, val_acc 0.5500" in out
    assert abs(sum(results.importances(sweep).values()) - 1) < 1e-6
    lines = (sweep.path / "trials.csv").read_text().splitlines()
    assert lines[0] == "trial,state,val_acc,epochs,seconds,model.lr,model.optimizer,reason"
    assert lines[1].startswith("0,failed,,0,")
    assert lines[1].endswith("out of memory")
    assert len(lines) == 16


# ---- trainings


def test_a_sweep_and_fit_repeats_its_best_trial_bit_for_bit(capfd: Any) -> None:
    command = ["sweep", "--config", write(), "--trials", "2"]
    assert main(command) == 0
    out, err = capfd.readouterr()
    assert not noise(out + err)
    assert "2 trials: 2 done" in out
    best = next(line for line in out.splitlines() if line.startswith("best: "))
    trial = Path(f"runs/digits/sweep_0/trial_{best.split()[2].rstrip(',')}")
    assert not noise((trial / "screen.txt").read_text())
    assert main(["fit", "--config", "runs/digits/sweep_0/best.yaml"]) == 0
    out = capfd.readouterr().out
    assert f"val_acc: {best.split()[-1]}" in out
    for name in ("best.ckpt", "last.ckpt"):
        ours, theirs = weights(trial / "checkpoints" / name), weights(Path("runs/digits/version_0/checkpoints") / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    before = (trial / "screen.txt").read_bytes()
    assert main(command) == 0  # all is done: the results again
    assert "2 trials: 2 done" in capfd.readouterr().out
    assert (trial / "screen.txt").read_bytes() == before


def test_a_trial_is_pruned_or_fails_and_the_sweep_goes_on(capfd: Any) -> None:
    write({"model.lr": [0.01, 1e30]}, {"trials": 7}, {"max_epochs": 3})
    options = read_options(["--config", "mine.yaml"], NOTHING)
    sweep = Sweep(find(options, None), options.settings)
    for _ in range(5):
        taken = ended(sweep, 2.0, 2.0, 2.0)
        (taken.folder / "config.yaml").write_text("")
    assert main(["sweep", "--config", "mine.yaml"]) == 0
    endings = {results.ending(sweep, trial)[:60] for trial in sweep.trials()[5:]}
    known = ("failed: step 1: expected a finite loss", "pruned after epoch 1", "failed: step 2: expected a finite")
    assert all(any(words in each for words in known) for each in endings), endings
    out = capfd.readouterr().out
    assert "trial 5: " in out
    assert "trial 6: " in out


def test_if_all_trials_fail_the_reason_is_told(capfd: Any) -> None:
    assert main(["sweep", "--config", write({"model.lr": [1e30]}, {"trials": 1}, {"limit_train_batches": 9})]) == 2
    assert "has a value; trial 0: step " in capfd.readouterr().err


def test_a_metric_that_no_trial_has_ends_the_sweep(capfd: Any) -> None:
    assert main(["sweep", "--config", write(), "--metric", "val_accc", "--trials", "2"]) == 2
    out, err = capfd.readouterr()
    assert "sweep.metric: expected val_acc or val_loss, got 'val_accc'" in err
    assert err.count("\n") == 1
    assert "trial 1" not in out


class Interrupted(Reports):
    """Raises what Ctrl-C raises, inside the second epoch."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 4:
            raise KeyboardInterrupt


def test_a_trial_that_was_stopped_goes_on_bit_for_bit() -> None:
    write(trainer={"max_epochs": 3})
    options = read_options(["--config", "mine.yaml"], NOTHING)
    sweeps = [Sweep(find(options, Path(name)), options.settings) for name in ("whole", "stopped")]
    for sweep, kinds in zip(sweeps, ([Reports], [Interrupted, Reports]), strict=True):
        for index, kind in enumerate(kinds):
            taken = sweep.take()
            assert taken is not None
            assert (taken.number, taken.resumed) == (0, index == 1)
            with process_kept():
                code = outcome(taken.args, taken.folder, kind(sweep, 0, "val_acc"))
            assert code == (130 if kind is Interrupted else 0, "")
            if kind is Reports:
                sweep.end(0)
            taken.lock.leave(empty=False)
    assert trained(sweeps[0]) == trained(sweeps[1])
    expect_equal_weights(*sweeps)
    for name in ("metrics.csv", "config.yaml"):  # the second without the checkpoint that it went on from
        first, second = ((sweep.folder(0) / name).read_text() for sweep in sweeps)
        assert first == second
    (sweeps[0].folder(0) / "config.yaml").unlink()
    with pytest.raises(UserError, match="sweep: can't read the config of the best trial, 0: No such file"):
        results.write(sweeps[0])


# ---- processes that are killed, that share, and that are two for each trial


def start(*flags: str) -> subprocess.Popen[str]:
    """The command, in a group of processes of its own."""
    return subprocess.Popen(
        [*SWEEP, *flags], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def starts(sweep: Sweep, number: int) -> int:
    """How often a trial began anew or went on."""
    return (sweep.folder(number) / "screen.txt").read_text().count("parameters to train")


LONG = {"max_epochs": 10, "limit_train_batches": 30}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", ["all", "command", "ctrl-c", "term"])
def test_a_sweep_that_was_stopped_in_any_way_ends_as_one_that_was_not(how: str) -> None:
    write(sweep={"trials": 3, "sampler": "tpe"}, trainer=LONG)
    assert main(["sweep", "--config", "mine.yaml", "--folder", "whole"]) == 0
    process = start()
    sweep = Sweep(Path("runs/digits/sweep_0"), read_options(["--config", "mine.yaml"], NOTHING).settings)
    until(lambda: (sweep.folder(1) / "metrics.csv").is_file() and len(sweep.trials()[1].intermediate_values) > 1)
    if how == "all":
        os.killpg(process.pid, signal.SIGKILL)
    elif how == "command":
        process.kill()
    else:
        os.kill(process.pid, signal.SIGINT if how == "ctrl-c" else signal.SIGTERM)
    out = process.communicate(timeout=120)[0]
    code = {"all": -9, "command": -9, "ctrl-c": 130, "term": 143}[how]
    assert process.returncode == code, out
    assert (how in ("all", "command")) or "stopped; to go on: the same command" in out
    assert [trial.state.name for trial in sweep.trials()] == ["COMPLETE", "RUNNING"]
    again = start()
    out = again.communicate(timeout=400)[0]
    assert again.returncode == 0, out
    assert "trial 1: goes on" in out
    assert "trial 0: " not in out
    whole = Sweep(Path("whole"), sweep.settings)
    assert trained(whole) == trained(sweep)
    expect_equal_weights(whole, sweep)
    assert [starts(sweep, number) for number in range(3)] == [1, 2, 1]
    for number in range(3):
        rows = [(each.folder(number) / "metrics.csv").read_text() for each in (whole, sweep)]
        assert rows[0] == rows[1]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_trial_that_is_killed_alone_has_failed_and_the_sweep_goes_on() -> None:
    write(trainer=LONG)
    process = start()
    sweep = Sweep(Path("runs/digits/sweep_0"), read_options(["--config", "mine.yaml"], NOTHING).settings)
    until(lambda: (sweep.folder(0) / "checkpoints/last.ckpt").is_file())
    os.kill(int((sweep.folder(0) / ".owner").read_text().split()[1]), signal.SIGKILL)
    out = process.communicate(timeout=400)[0]
    assert process.returncode == 0, out
    assert "trial 0: failed: its process was killed by signal 9 (often for want of memory)" in out
    assert [trial.state.name for trial in sweep.trials()] == ["FAIL", "COMPLETE"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_commands_share_the_trials() -> None:
    write(sweep={"trials": 6}, trainer=LONG | {"max_epochs": 4})
    processes = [start(), start()]
    outs = [process.communicate(timeout=400)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outs
    (folder,) = Path("runs/digits").glob("sweep_*")
    sweep = Sweep(folder, read_options(["--config", "mine.yaml"], NOTHING).settings)
    assert [trial.state.name for trial in sweep.trials()] == ["COMPLETE"] * 6
    assert [starts(sweep, number) for number in range(6)] == [1] * 6
    assert len({str(trial.params) for trial in sweep.trials()}) == 6
    begun = [[line for line in out.splitlines() if line.startswith("trial ") and "model.lr" in line] for out in outs]
    assert all(begun)
    assert sum(map(len, begun)) == 6
    assert all("6 trials: 6 done" in out for out in outs)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.ddp
@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
def test_two_processes_for_each_trial_have_one_choice_and_stop_together(strategy: str) -> None:
    trainer = {"max_epochs": 3, "devices": 2, "accelerator": "cpu", "strategy": strategy}
    write(sweep={"trials": 2}, trainer=trainer)
    process = start()
    out = process.communicate(timeout=400)[0]
    assert process.returncode == 0, out
    assert not noise(out)
    sweep = Sweep(Path("runs/digits/sweep_0"), read_options(["--config", "mine.yaml"], NOTHING).settings)
    assert [len(trial.intermediate_values) for trial in sweep.trials()] == [3, 3]
    if strategy == "ddp_spawn":
        return
    fit = [sys.executable, "-m", "cnn_lightning", "fit", "--config", "runs/digits/sweep_0/best.yaml"]
    assert subprocess.run(fit, capture_output=True, check=False).returncode == 0
    best = sweep.folder(results.ranked(sweep)[0].number) / "checkpoints/last.ckpt"
    ours, theirs = weights(best), weights(Path("runs/digits/version_0/checkpoints/last.ckpt"))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)

    more = Sweep(sweep.path, read_options(["--config", "mine.yaml"], {"trials": 7}).settings)
    for _ in range(4):
        (ended(more, 2.0, 2.0, 2.0).folder / "config.yaml").write_text("")
    process = start("--trials", "7")
    out = process.communicate(timeout=400)[0]
    assert process.returncode == 0, out
    assert "trial 6: val_acc" in out
    assert "pruned after epoch 1" in out
