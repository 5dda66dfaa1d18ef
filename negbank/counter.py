"""Randomness by counter: every draw is a function of (seed, stream, step, slot), never of what was drawn before.

    Counter.of(run_seed).at("views", step)    a place in the tree of all random numbers, one 64-bit key
        .generator()                          a `torch.Generator` that begins at the place
        .seeds(slots)                         one seed for each slot, such as each input of a step
        .uniforms(slots, n)                   n uniforms for each slot, such as each anchor of a step

A run so has no state of a generator to save: a step can be taken again alone, and neither workers, processes nor the
size of a piece can change what is drawn. Keys are mixed by the finaliser of SplitMix64 (Steele, Lea & Flood 2014),
which is also the generator of compiled loops; it is written once, for arrays and loops alike.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_27, _30, _31, _11 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(11)
_40, _8, _LOW = np.uint64(40), np.uint64(8), np.uint64(2**32 - 1)


@numba.njit(cache=True, nogil=True, inline="always")
def mix(z: np.uint64) -> np.uint64:
    """The finaliser of SplitMix64: a bijection of 64 bits in which each depends on all."""
    z = (z ^ (z >> _30)) * _FIRST
    z = (z ^ (z >> _27)) * _SECOND
    return z ^ (z >> _31)


_mixed: Any = mix.py_func
"""`mix` of whole arrays."""


class Counter(NamedTuple):
    """A place in the tree of all random numbers of a run."""

    key: int

    @classmethod
    def of(cls, seed: int) -> Counter:
        """The root of a run's seed."""
        return cls(0).at(seed)

    def at(self, *place: int | str) -> Counter:
        """The place below this one: a stream's name, a step, a slot."""
        key = np.array([self.key], dtype=np.uint64)
        for each in place:
            name = int.from_bytes(hashlib.sha256(each.encode()).digest()[:8], "big") if isinstance(each, str) else each
            key = _mixed(_mixed(key) + np.array([name % 2**64], dtype=np.uint64) * _STEP + _STEP)
        return Counter(int(key[0]))

    def generator(self) -> torch.Generator:
        """A generator on the CPU whose draws are those of this place."""
        return torch.Generator().manual_seed(self.key)

    def stream(self) -> np.ndarray:
        """A stream (1,) uint64 for `uniform` and `below` in compiled loops."""
        return np.array([self.key], dtype=np.uint64)

    def seeds(self, slots: Tensor | int) -> Tensor:
        """One seed for each of slots (n,), or of 0..n−1: (n,) int64."""
        at = np.arange(slots, dtype=np.uint64) if isinstance(slots, int) else slots.cpu().numpy().astype(np.uint64)
        return torch.from_numpy(_mixed(np.uint64(self.key) + (at + np.uint64(1)) * _STEP).view(np.int64))

    def uniforms(self, slots: Tensor, n: int) -> Tensor:
        """n float64 uniforms in [0, 1) for each of slots (m,), of which alone they depend: (m, n) on their device."""
        out = np.empty((len(slots), n))
        _spread(self.seeds(slots).numpy().view(np.uint64), out)
        return torch.from_numpy(out).to(slots.device)


def seeded_uniforms(seeds: Tensor, n: int) -> Tensor:
    """n float32 uniforms in [0, 1) of 24 bits for each of seeds (m,) int64, of which alone they depend: (m, n)."""
    at = np.arange(1, n + 1, dtype=np.uint64) * _STEP
    z = _mixed(_mixed(seeds.cpu().numpy().view(np.uint64))[:, None] + at)
    return torch.from_numpy((z >> _40).astype(np.float32) * np.float32(2**-24))


def uniforms(shape: tuple[int, ...], *, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Float64 uniforms in [0, 1) on `device`, drawn on the generator's own device.

    A CPU generator so gives the same draws whatever the device of the rows.
    """
    source = device if generator is None else generator.device
    return torch.rand(shape, generator=generator, device=source, dtype=torch.float64).to(device)


def stream(generator: torch.Generator) -> np.ndarray:
    """A stream (1,) uint64 whose seed is drawn from the generator."""
    return np.array([int(torch.randint(2**62, (), generator=generator))], dtype=np.uint64)


@numba.njit(cache=True, nogil=True, inline="always")
def uniform(state: np.ndarray) -> float:
    """The stream's next float64 uniform in [0, 1)."""
    state[0] += _STEP
    return float(mix(state[0]) >> _11) * (1.0 / 9007199254740992.0)


@numba.njit(cache=True, nogil=True, inline="always")
def below(state: np.ndarray, n: int) -> int:
    """The stream's next integer of 0..n−1, n < 2³²: biased by less than n / 2⁵³."""
    return int(uniform(state) * n)


@numba.njit(cache=True, nogil=True)
def _spread(seeds: np.ndarray, out: np.ndarray) -> None:
    """Float64 uniforms in [0, 1) of 53 bits into out (m, n), a row a seed."""
    for i in range(len(seeds)):
        seed = mix(seeds[i])
        for k in range(out.shape[1]):
            out[i, k] = float(mix(seed + np.uint64(k + 1) * _STEP) >> _11) * (1.0 / 9007199254740992.0)


@numba.njit(cache=True, nogil=True)
def fill(seeds: np.ndarray, out: np.ndarray) -> None:
    """Float32 uniforms in [0, 1) into out (2n, m), a column a seed, of 24 bits each, two of an output.

    By row and column, so in whole vectors: a tenth of the time of NumPy's fastest generator.
    """
    half, keys = len(out) // 2, np.empty_like(seeds)
    for i in range(len(seeds)):
        keys[i] = mix(seeds[i])
    for k in range(half):
        first, second, at = out[k], out[half + k], np.uint64(k + 1) * _STEP
        for i in range(len(seeds)):
            z = mix(keys[i] + at)
            first[i] = np.float32(np.int32(z >> _40)) * np.float32(2**-24)
            second[i] = np.float32(np.int32((z & _LOW) >> _8)) * np.float32(2**-24)
