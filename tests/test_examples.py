from __future__ import annotations

import gzip
import runpy
from pathlib import Path

import pytest
import torch

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


def test_caption_pairs_learn_to_find_each_other(tmp_path, capsys):
    """Two languages of sixty words each, and random embeddings: nothing but training can align them."""
    generator = torch.Generator().manual_seed(0)
    for part, count in (("train", 400), ("val", 40)):
        pictures = [torch.randperm(60, generator=generator)[:6].tolist() for _ in range(count)]
        for number in (1, 2, 3, 4):
            language = "ab"[(number - 1) % 2]
            said = [" ".join(f"{language}{word}" for word in words[number // 3 :]) for words in pictures]
            with gzip.open(tmp_path / f"{part}.{number}.en.gz", "wt") as file:
                file.write("\n".join(said) + "\n")
    module = runpy.run_path(str(EXAMPLES / "caption_pairs.py"))
    table = tmp_path / "found.csv"
    options = {"steps": 100, "batch_size": 64, "temperature": 0.1, "pairs": 2, "packaged": False, "out": table}
    found = module["main"](tmp_path, ["infonce", "importance"], **options)
    assert list(found) == ["static", "infonce", "importance"]
    for way in ("left_to_right", "right_to_left"):
        assert found["static"][f"{way}_at_10"] < 0.5
        for name in ("infonce", "importance"):
            assert found[name][f"{way}_at_10"] > found["static"][f"{way}_at_10"] + 0.3
    assert found["importance"]["encodings"] > found["infonce"]["encodings"]
    assert "800 pairs, 40 held out, 121 tokens" in capsys.readouterr().out
    assert len(table.read_text().splitlines()) == 4


def test_caption_pairs_know_the_packaged_tokens():
    pytest.importorskip("wordllama")
    table, tokenize = runpy.run_path(str(EXAMPLES / "caption_pairs.py"))["packaged_tokens"]()
    (ids,) = tokenize(["Two young guys"])
    assert table.shape == (32_000, 256)
    assert len(ids) == 3
