"""Two text encoders, one for each of two captions of an image, on static token embeddings: retrieval both ways.

python examples/caption_pairs.py DATA_DIR [--negatives infonce sogclr emc2 importance] [--steps 600] [--seed 0]

DATA_DIR holds train.K.en.gz and val.K.en.gz, caption K of every image a line (Multi30k, task 2). The left encoder reads
captions 1 and the right one captions 2; `--pairs 2` takes captions 3 and 4 as well, and the two pairs of one image are
no negatives of each other. The token embeddings are those of wordllama, which ship in its wheel: pip install
"negbank[text]". Without it they are random, one a word.
"""

import argparse
import csv
import gzip
import importlib.util
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from negbank.counter import seeded_uniforms
from negbank.train.build import build
from negbank.train.config import parse
from negbank.train.data.contract import Pairs, Splits

KS = (1, 5, 10)
PROPOSAL = {"type": "nearest", "k": 32}
NEGATIVES: dict[str, dict[str, Any]] = {
    "infonce": {"type": "in_batch"},
    "sogclr": {"type": "sogclr", "relative": True},
    "emc2": {"type": "emc2", "pool": True, "draws": 64, "proposal": PROPOSAL},
    "importance": {"type": "importance", "draws": 64, "proposal": PROPOSAL},
}
Tokenize = Callable[[Sequence[str]], list[list[int]]]


class TextEncoder(nn.Module):
    """Tokens (n, L), padded by −1, to unit vectors (n, D): a weighted mean of static embeddings and a residual MLP.

    It starts as their plain mean. table (V, D) is not trained; one weight a token and the MLP are.
    """

    def __init__(self, table: Tensor, hidden: int = 512) -> None:
        super().__init__()
        width = table.shape[1]
        self.register_buffer("table", table, persistent=False)
        self.weight = nn.Parameter(torch.zeros(len(table)))
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        nn.init.zeros_(self.mlp[3].weight)
        nn.init.zeros_(self.mlp[3].bias)

    def forward(self, tokens: Tensor) -> Tensor:
        at = tokens.clamp(min=0)
        weights = self.weight[at].exp() * (tokens >= 0)
        mean = torch.bmm(weights[:, None], self.table[at])[:, 0] / weights.sum(1, keepdim=True).clamp(min=1e-6)
        mean = nn.functional.normalize(mean, dim=1)
        return nn.functional.normalize(mean + self.mlp(mean), dim=1)


def packaged_tokens() -> tuple[Tensor, Tokenize] | None:
    """The embeddings (32000, 256) and tokenizer in the installed wordllama, read from its files; None without it."""
    found = importlib.util.find_spec("wordllama")
    if found is None or not found.submodule_search_locations:
        return None
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    folder = Path(found.submodule_search_locations[0])
    (table,) = load_file(folder / "weights" / "l2_supercat_256.safetensors").values()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    return table.float(), lambda texts: [e.ids for e in tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def random_tokens(texts: Sequence[str], *, width: int = 256) -> tuple[Tensor, Tokenize]:
    """A random embedding for each word of texts, and one for all other words."""
    split = re.compile(r"\w+").findall
    words = {word: i for i, word in enumerate(sorted({w for text in texts for w in split(text.lower())}), start=1)}
    table = torch.randn(len(words) + 1, width, generator=torch.Generator().manual_seed(0))
    return table, lambda texts: [[words.get(w, 0) for w in split(text.lower())] for text in texts]


def captions(folder: Path, part: str, number: int) -> list[str]:
    """Caption `number` of every image of "train" or "val"."""
    with gzip.open(folder / f"{part}.{number}.en.gz", "rt", encoding="utf-8") as file:
        return [line.strip() for line in file]


def padded(ids: list[list[int]], *, longest: int = 32) -> Tensor:
    """(n, L) tokens, cut at `longest` and padded by −1."""
    rows = [torch.tensor(each[:longest] or [0]) for each in ids]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)


class Captions:
    """Tokens (N, L) of one caption a row, under a seed without a random share `drop` of them."""

    labels = None

    def __init__(self, tokens: Tensor, drop: float) -> None:
        self.tokens, self.drop = tokens, drop

    def __len__(self) -> int:
        return len(self.tokens)

    def read(self, rows: Tensor, seeds: Tensor | None) -> Tensor:
        found = self.tokens[rows]
        if seeds is None:
            return found
        gone = seeded_uniforms(seeds, found.shape[1]) < self.drop
        gone[:, 0] = False
        return found.masked_fill(gone, -1)


def main(
    folder: Path,
    names: Sequence[str] = tuple(NEGATIVES),
    *,
    steps: int = 600,
    batch_size: int = 128,
    temperature: float = 0.03,
    drop: float = 0.2,
    pairs: int = 1,
    seed: int = 0,
    packaged: bool = True,
    out: Path | None = None,
) -> dict[str, dict[str, float]]:
    """Train once for each of `names`; recall before ("static") and after, by name."""
    train = [[text for p in range(pairs) for text in captions(folder, "train", 2 * p + side)] for side in (1, 2)]
    count = len(train[0]) // pairs
    tokens = packaged_tokens() if packaged else None
    table, tokenize = random_tokens(train[0] + train[1]) if tokens is None else tokens
    sides = [Captions(padded(tokenize(texts)), drop) for texts in train]
    held_out = [Captions(padded(tokenize(captions(folder, "val", side))), drop) for side in (1, 2)]
    groups = None if pairs == 1 else torch.arange(count).repeat(pairs)
    splits = Splits(Pairs(*sides, groups), Pairs(*held_out, None), ())
    print(f"{count * pairs} pairs, {len(held_out[0])} held out, {len(table)} tokens of width {table.shape[1]}")
    results: dict[str, dict[str, float]] = {}
    for name in names:
        config, _ = parse(
            {
                "data": {"type": "own"},
                "encoder": {"type": "own"},
                "eval": {"type": "retrieval", "corpus": "held_out", "ks": list(KS)},
                "batches": {"batch_size": batch_size},
                "negatives": NEGATIVES[name],
                "loss": {"temperature": temperature},
                "optim": {"type": "adamw", "lr": 1e-3, "warmup": min(50, steps // 10)},
                "run": {"steps": steps, "seed": seed, "device": "cpu", "precision": "float32"},
            }
        )
        torch.manual_seed(seed)
        run = build(config, encoder=[TextEncoder(table) for _ in sides], splits=splits)
        trainer = run.trainer
        if not results:
            results["static"] = {**run.evaluation.full(), "encodings": 0, "seconds": 0.0}
            _show("static", results["static"])
        started = time.perf_counter()
        for _ in range(steps):
            trainer.step()
            trainer.refresh()
        seconds = time.perf_counter() - started
        results[name] = {**run.evaluation.full(), "encodings": trainer.encodings, "seconds": seconds}
        _show(name, results[name])
    if out is not None:
        _append(out, results, {"seed": seed, "steps": steps, "batch_size": batch_size, "pairs": pairs})
    return results


def _show(name: str, found: dict[str, float]) -> None:
    ways = [" / ".join(f"{found[f'{way}_at_{k}']:.3f}" for k in KS) for way in ("left_to_right", "right_to_left")]
    print(
        f"{name:12} recall@{'/'.join(map(str, KS))} left to right {ways[0]}, right to left {ways[1]}; "
        f"{found['encodings']:.0f} encodings, {found['seconds']:.0f} s",
        flush=True,
    )


def _append(out: Path, results: dict[str, dict[str, float]], run: dict[str, int]) -> None:
    """One row a method, without its seconds; a new file gets its header."""
    fresh = not out.exists()
    with out.open("a", newline="") as file:
        rows = [
            {"negatives": name, **run, **{k: round(v, 4) for k, v in found.items() if k != "seconds"}}
            for name, found in results.items()
        ]
        writer = csv.DictWriter(file, list(rows[0]))
        if fresh:
            writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--negatives", nargs="+", choices=list(NEGATIVES), default=list(NEGATIVES))
    arguments.add_argument("--steps", type=int, default=600)
    arguments.add_argument("--batch-size", type=int, default=128)
    arguments.add_argument("--temperature", type=float, default=0.03)
    arguments.add_argument("--pairs", type=int, choices=(1, 2), default=1)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--out", type=Path, help="a CSV file that gets one row a method")
    options = arguments.parse_args()
    main(
        options.folder, options.negatives, steps=options.steps, batch_size=options.batch_size,
        temperature=options.temperature, pairs=options.pairs, seed=options.seed, out=options.out,
    )  # fmt: skip
