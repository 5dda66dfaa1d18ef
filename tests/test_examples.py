from __future__ import annotations

import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_the_plain_loop_learns_in_under_60_lines(capsys):
    path = EXAMPLES / "plain_pytorch_loop.py"
    assert len(path.read_text().splitlines()) < 60
    main = runpy.run_path(str(path))["main"]
    first, last = main(1), main(160)
    assert last < 0.6 * first
    assert "acceptance_index" in capsys.readouterr().out
