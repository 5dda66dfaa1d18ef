"""The frame of the command line: what it imports, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from negbank.files import DamagedError
from negbank.train import commands
from negbank.train.commands import exit_code, main, parser
from negbank.train.data.images.sources import DownloadError
from negbank.train.descent import NonFiniteError
from negbank.train.loop import RunError, Stopped
from negbank.train.studies.ablation.store import AblationError

HEAVY = ("torch", "numpy", "faiss", "numba", "yaml", "pydantic", "matplotlib", "sklearn", "torchvision")
VERBS = sorted(parser()._subparsers._group_actions[0].choices)  # type: ignore[union-attr]


@pytest.mark.parametrize("words", [["--help"], ["--version"], *([verb, "--help"] for verb in VERBS)], ids=" ".join)
def test_help_and_version_import_nothing_heavy(words):
    code = (
        "import sys; from negbank.train.commands import main\n"
        f"try: main({words})\n"
        "except SystemExit as end: assert end.code == 0\n"
        f"assert not [name for name in {HEAVY} if name in sys.modules], sys.modules.keys()"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("given"), 2), (FileNotFoundError(2, "none"), 2), (PermissionError(13, "denied"), 1),
        (ModuleNotFoundError("none"), 1), (RunError("failed"), 1), (DownloadError("failed"), 1),
        (DamagedError("damaged"), 1), (AblationError("another"), 1), (NonFiniteError("diverged"), 3),
        (Stopped(15, 3), 143), (RuntimeError("a bug"), None), (TypeError("a bug"), None),
    ],
)  # fmt: skip
def test_every_error_has_one_exit_code(error, code):
    assert exit_code(error) == code


@pytest.mark.parametrize(("error", "code", "said"), [
    (ValueError("k=3: too many"), 2, "negbank: k=3: too many\n"),
    (KeyboardInterrupt(), 130, "negbank: stopped; the same command goes on from the last finished measurement\n"),
])  # fmt: skip
def test_errors_are_one_line_each(error, code, said, capsys, monkeypatch):
    def fail(options):
        raise error

    monkeypatch.setattr("negbank.train.commands.ablate.run", fail)
    assert main(["ablate", "x.yaml"]) == code
    assert capsys.readouterr().err == said


def test_bugs_are_not_hidden(monkeypatch):
    def fail(options):
        raise TypeError("a bug")

    monkeypatch.setattr("negbank.train.commands.evaluate.run", fail)
    with pytest.raises(TypeError):
        main(["eval", "x"])


def test_unknown_words_are_refused(capsys):
    for words in (["eval", "x", "run.seed=1"], ["train", "x.yaml", "--fast"], ["train", "x.yaml", "word"]):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 2
        assert words[-1] in capsys.readouterr().err


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == commands.version("negbank")


def test_a_reader_that_has_seen_enough_is_no_error():
    """`negbank list negatives | head -1`, but for the shell."""
    read, write = os.pipe()
    os.close(read)
    listing = [sys.executable, "-m", "negbank", "list"]
    done = subprocess.run(listing, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")
