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


def test_the_toy_orders_the_selections_as_published(tmp_path, capsys):
    module = runpy.run_path(str(EXAMPLES / "toy_free_vectors.py"))
    six = [name for name in module["SELECTIONS"] if name != "ordered"]
    picture = tmp_path / "toy.png"
    curves = module["main"](2000, seeds=[1], figure=picture, selections=six)
    for dim, optimum, never_below in ((16, 2.346416, 2.449), (4, 2.413505, 2.506)):
        assert abs(module["OPTIMA"][dim] - optimum) < 1e-6
        last = {name: float(curves[name, dim][-100:].mean()) for name in six}
        assert 0 < max(last["OSGD"], last["spectral"]) - optimum < 2e-4
        assert max(last["OSGD"], last["spectral"]) < last["full"] < last["shuffle"] < last["fixed"]
        assert last["full"] < last["all"] < last["fixed"]
        assert float(curves["fixed", dim].min()) > never_below
    assert capsys.readouterr().out.count("\n| ") == 8
    assert picture.stat().st_size > 10_000


def test_the_toys_ordered_selection_uses_the_sampler():
    module = runpy.run_path(str(EXAMPLES / "toy_free_vectors.py"))
    curves = module["main"](100, seeds=[1], selections=["shuffle", "ordered"])
    for dim in module["OPTIMA"]:
        assert float(curves["ordered", dim][-1]) < float(curves["shuffle", dim][-1])
