"""Bounds of arguments, said in signatures: what is refused, in which words, and that nothing heavy is imported."""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated, Literal

import pytest

from negbank.bounds import Count, Ge, Gt, Le, Lt, Positive, Section, Share, Supplied, checked


class Sampler:
    @checked
    def __init__(
        self,
        rows: int,
        *,
        draws: Count = 2,
        rate: Positive | None = None,
        share: Share = 0.5,
        half: Annotated[float, Ge(0), Lt(1)] = 0.0,
        cosine: Annotated[float, Gt(-1), Le(1)] = 1.0,
        temperature: Annotated[float, Gt(0), Supplied("loss.temperature")] = 0.1,
        proposal: Annotated[object, Section("proposal", "head_tail", k=16)] = None,
        query: Literal["bank", "fresh"] | None = "bank",
    ) -> None:
        """What it does."""
        self.got = (rows, draws, rate, share, half, cosine, temperature, proposal, query)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"draws": 0}, "draws=0: expected at least 1"),
        ({"draws": "two"}, "draws='two': expected at least 1"),
        ({"rate": 0.0}, "rate=0.0: expected a value above 0"),
        ({"rate": float("nan")}, "rate=nan: expected a value above 0"),
        ({"share": 1.5}, "share=1.5: expected at least 0 and at most 1"),
        ({"share": -0.1}, "share=-0.1: expected at least 0 and at most 1"),
        ({"half": 1.0}, "half=1.0: expected at least 0 and below 1"),
        ({"cosine": -1.0}, "cosine=-1.0: expected a value above -1 and at most 1"),
        ({"temperature": -1.0}, "temperature=-1.0: expected a value above 0"),
        ({"query": "z"}, "query='z': expected one of bank, fresh"),
    ],
)
def test_what_is_out_of_bounds_is_named(arguments, message):
    with pytest.raises(ValueError) as caught:
        Sampler(5, **arguments)
    assert str(caught.value) == message


def test_what_is_within_them_passes_unchanged():
    section = object()
    assert Sampler(5, draws=1, rate=None, share=0, half=0.999, cosine=1, proposal=section, query=None).got == (
        5, 1, None, 0, 0.999, 1, 0.1, section, None,
    )  # fmt: skip
    assert Sampler.__init__.__doc__ == "What it does."


def test_a_wrong_call_is_pythons_own_error():
    with pytest.raises(TypeError, match="rows"):
        Sampler()
    with pytest.raises(TypeError, match="unknown"):
        Sampler(5, unknown=1)


def test_functions_are_held_to_theirs_too():
    @checked
    def step(size: Annotated[int, Ge(2)], unit: Literal["steps", "epochs"] = "steps") -> int:
        return size

    assert step(2) == 2
    with pytest.raises(ValueError, match="size=1: expected at least 2"):
        step(1)
    with pytest.raises(ValueError, match="unit='days': expected one of steps, epochs"):
        step(2, unit="days")


def test_names_and_bounds_load_without_torch():
    code = (
        "import sys, negbank, negbank.bounds, negbank.files\n"
        "assert 'EmbeddingBank' in dir(negbank) and negbank.bounds.Count\n"
        "heavy = {'torch', 'numpy', 'faiss', 'numba'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "from negbank import Snapshot\n"
        "assert negbank.Snapshot is Snapshot and 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
