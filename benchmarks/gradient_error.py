"""How far each method's gradient is from the exact one of the global contrastive loss, at equal encodings.

    python benchmarks/gradient_error.py [--encodings 64 128] [--batches 150] [--temperature 0.07] [--out rows.csv]
    python benchmarks/gradient_error.py --data digits

1000 images of mnist5k, two fixed views each, and a small perceptron, so that everything about F is known exactly:

    F = mean_a −β s_a⁺ + log mean_j exp(β s_aj)        a: 2N anchors (row, view); j: both views of all other rows

The encoder is pre-trained with in-batch negatives, the bank is its state some steps earlier. Encodings are counted as
they are made: two views a row, one random view of every distinct drawn row or carried state. Methods that draw get as
many draws as fit; those that do not, as many rows. With g = ∇F, ĝ an estimate and ĝ^A the mean exact gradient of the
*same* anchors, over independent batches and in units of |g|:

    error      √mean|ĝ − g|²                               bias, spread  |mean ĝ − g|, and the rest of the error
    anchors    √mean|ĝ^A − g|²                             negatives     √mean|ĝ − ĝ^A|²
    cosine     mean cosine of ĝ and g                      limit         of ĝ^A and g
    tangent    mean over anchors of |P(ẑ − z̄)| / |P z̄|,    ẑ = Σ_r w_r z_r / Σ_r w_r, z̄ = Σ_j π_j z_j
    mean       the same without P, the projection to the anchor's tangent space

|mean ĝ − g|² is the product of the means of two independent halves, to which noise adds nothing on average; where
batches are uniform ĝ − ĝ^A stands for ĝ − g, whose mean is the same. A bias below two of its standard errors is printed
as "<" those two. Chains start from exact draws of π and go through `--warmup` epochs, which is persistence at its best:
in training π moves between visits.

`--data digits`: the embeddings of benchmarks/proposals.py, which have no encoder and one view a row: the last two
columns alone.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections.abc import Callable
from functools import partial
from itertools import chain, repeat
from typing import Any, NamedTuple

import torch
from proposals import truth
from torch import Tensor, nn
from torch.nn import functional as F

from negbank import Snapshot
from negbank.bank import unit_rows
from negbank.counter import Counter
from negbank.proposals import HeadTail
from negbank.samplers.batches import Drawn
from negbank.samplers.negatives import Emc2, EncodedBatch, Importance, InBatch, Negatives, SogClr, Ticket
from negbank.train.data.images.sources import mnist5k
from negbank.train.evaluate.measures import mean_cosine
from negbank.train.losses import surrogate
from negbank.train.studies.ablation.sources import moved

ROWS = 1000
COLLAPSED = 0.9
COLUMNS = ("error", "bias", "spread", "anchors", "negatives", "cosine", "limit", "tangent", "mean")


class Problem(NamedTuple):
    """What is exact. N rows, 2N embeddings: all first views before all second ones."""

    temperature: float
    z: Tensor  # (2N, D)
    bank: Snapshot
    means: Tensor  # (2N, D) Σ_j π_aj z_j
    of_rows: Tensor  # (2N, N) π summed over the views of a row
    inputs: Tensor  # (2N, pixels)
    encoder: nn.Module | None
    gradients: Tensor  # (N, parameters) of the two anchors of each row: their mean is ∇F; (N, 0) without an encoder


class Method(NamedTuple):
    """A way to choose negatives. make: (draws, counter) → sampler.

    fits: what is fitted to a number of encodings, "draws" or "rows". near: rows of a batch that are nearest to one
    another, 0 for uniform batches. warm: whether it has a past. group: of drawn batches, 0 for others.
    """

    name: str
    make: Callable[[int, Counter], Any]
    fits: str = "draws"
    near: int = 0
    warm: bool = False
    group: int = 0


class Perceptron(nn.Module):
    """14×14 pixels → 128 → the unit sphere in 32 dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(196, 128), nn.ReLU(), nn.Linear(128, 32))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.layers(x), dim=1)


def sogclr(problem: Problem, gamma: float) -> SogClr:
    """Its averages begin at what they average over the data set: u_i = mean_j exp(β(s_ij − s_i⁺))."""
    made = SogClr(len(problem.z) // 2, temperature=problem.temperature, gamma=gamma, relative=True)
    positive = (problem.z * problem.z.roll(len(problem.z) // 2, 0)).sum(1) / problem.temperature
    means = logits(problem.z, problem.temperature).logsumexp(1) - math.log(len(problem.z) - 2) - positive
    made.averages.log_u.copy_(means.view(2, -1).T)
    return made


def logits(z: Tensor, temperature: float) -> Tensor:
    """β s of all anchors and candidates (2N, 2N), −∞ for an anchor's own row."""
    row = torch.arange(len(z)) % (len(z) // 2)
    return (z @ z.T / temperature).masked_fill(row[:, None] == row, -torch.inf)


def loss(z: Tensor, temperature: float) -> Tensor:
    """F itself, for autograd."""
    positive = (z * z.roll(len(z) // 2, 0)).sum(1) / temperature
    return (logits(z, temperature).logsumexp(1) - math.log(len(z) - 2) - positive).mean()


def row_gradients(encoder: nn.Module, inputs: Tensor, temperature: float) -> Tensor:
    """(N, parameters) gradient of (F_a + F_a') / 2, a and a' the two anchors of a row, in float64 until the end."""
    live = encoder(inputs)
    z = live.detach()
    count, every = len(z) // 2, torch.arange(len(z))
    slopes = logits(z, temperature).softmax(1) / temperature  # ∂F_a/∂s_ab
    slopes[every, every.roll(count)] -= 1 / temperature
    found = []
    for rows in every[:count].split(25):
        of_z = z.new_zeros(len(rows), *z.shape)
        for a in (rows, rows + count):
            of_z += slopes[a, :, None] * z[a, None] / 2
            of_z[torch.arange(len(rows)), a] += slopes[a] @ z / 2
        parts = torch.autograd.grad(live, list(encoder.parameters()), of_z, retain_graph=True, is_grads_batched=True)
        found.append(torch.cat([part.flatten(1) for part in parts], 1).float())
    return torch.cat(found)


def mnist(temperature: float, cosine: float, steps: int, seed: int, *, same: bool) -> tuple[Problem, int]:
    """The pre-trained encoder, and how many steps before the last one its bank is."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    data, place, every = mnist5k().train, Counter.of(seed).at("views"), torch.arange(ROWS)

    def views(rows: Tensor, at: int) -> Tensor:
        return F.avg_pool2d(data.read(rows, place.at(at).seeds(len(rows))), 2).flatten(1)

    inputs = views(every, 0)
    inputs = torch.cat((inputs, inputs if same else views(every, 1)))
    encoder, negatives, past = Perceptron(), InBatch(temperature=temperature), []
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=1e-3)
    for step in range(steps + 1):
        with torch.no_grad():
            z = encoder(inputs)
            past.append(unit_rows(z[:ROWS] + z[ROWS:]))
        if step < steps:
            rows = torch.randperm(ROWS, generator=generator)[:128]
            batch = EncodedBatch.from_views(rows, encoder(views(rows.repeat(2), 2 + step)))
            optimiser.zero_grad()
            found, _ = negatives(batch, negatives.draw(rows, step=step))
            surrogate(batch, found, temperature=temperature).backward()
            optimiser.step()
    lag = min(range(len(past)), key=lambda a: abs(float((past[-1 - a] * past[-1]).sum(1).mean()) - cosine))
    encoder.double()
    gradients = row_gradients(encoder, inputs.double(), temperature)
    value = loss(encoder(inputs.double()), temperature)
    exact = torch.cat([part.flatten() for part in torch.autograd.grad(value, list(encoder.parameters()))])
    gap = float((exact - gradients.double().mean(0)).norm() / exact.norm())
    print(f"F = {value.item():.3f}, |∇F| = {float(exact.norm()):.3f}, the sum of the rows' own to within {gap:.0e}")
    encoder.float()
    return known(temperature, encoder(inputs).detach(), past[-1 - lag], inputs, encoder, gradients), lag


def known(
    temperature: float, z: Tensor, bank: Tensor, inputs: Tensor, encoder: nn.Module | None, gradients: Tensor
) -> Problem:
    """A problem of float32 embeddings z (2N, D)."""
    pi = logits(z.double(), temperature).softmax(1)
    snapshot, means = Snapshot.build(bank, factory="exact"), (pi @ z.double()).float()
    return Problem(temperature, z, snapshot, means, pi.unflatten(1, (2, -1)).sum(1).float(), inputs, encoder, gradients)


def head_tail(problem: Problem) -> partial[HeadTail]:
    """What all draws are from."""
    return partial(HeadTail, k=64, temperature=problem.temperature, floor=0.1)


def methods(problem: Problem) -> list[Method]:
    """All that are compared."""
    settings: dict[str, Any] = {"num_rows": len(problem.z) // 2, "temperature": problem.temperature}
    settings["proposal"] = head_tail(problem)

    def logq(name: str, *, near: int = 0, **options: Any) -> Method:
        return Method(f"logQ {name}", lambda n, c: Importance(draws=n, counter=c, **settings, **options), "draws", near)

    def emc2(name: str, *, draws: int = 0, near: int = 0, **options: Any) -> Method:
        fits = "rows" if draws or options.get("proposals") == "in_batch" else "draws"
        warm = options.get("start") != "fresh"
        return Method(
            f"EMC² {name}",
            lambda n, c: Emc2(draws=draws or max(n, 1), counter=c, **settings, **options),
            fits,
            near,
            warm,
        )

    simclr = Method("SimCLR", lambda n, g: InBatch(temperature=problem.temperature), "rows")
    own: dict[str, Any] = {"proposals": "index"}
    pool: dict[str, Any] = {"pool": True, "positive": False}
    return [
        simclr,
        simclr._replace(name="SimCLR, near rows in eights", near=8),
        simclr._replace(name="SimCLR, near rows", near=ROWS),
        Method("SogCLR γ = 0.9", lambda n, g: sogclr(problem, 0.9), "rows", warm=True),
        Method("SogCLR γ = 0.1", lambda n, g: sogclr(problem, 0.1), "rows", warm=True),
        emc2("in batch, all views (published)", proposals="in_batch", batch_views="all"),
        emc2("in batch, one view", proposals="in_batch"),
        emc2("own draws, bank scores", **own, draws=16, score="bank"),
        emc2("own draws, delayed", **own, draws=16, score="delayed"),
        emc2("own draws", **own),
        emc2("own draws, no burn-in", **own, burn_in=0),
        emc2("own draws, fresh start", **own, start="fresh"),
        logq("own draws", pool=False, batch=False, positive=False),
        emc2("pool", pool=True),
        emc2("pool, no burn-in", pool=True, burn_in=0),
        emc2("pool, fresh start", pool=True, start="fresh"),
        emc2("pool, fresh start, fresh query", pool=True, start="fresh", query="fresh"),
        emc2("pool, fresh start, near rows", **own, pool=True, start="fresh", near=ROWS),
        logq("pool, positive in", pool=True),
        logq("pool", **pool),
        logq("pool, fresh query", **pool, query="fresh"),
        *(logq(f"drawn batches, groups of {g}")._replace(fits="rows", group=g) for g in (2, 4, 8)),
        logq("pool, near rows in eights", **pool, batch=False, near=8),
        logq("pool, near rows", **pool, batch=False, near=ROWS),
    ]


class Trial:
    """One sampler before batches of `rows` rows, its chains and averages at their stationary law."""

    def __init__(self, problem: Problem, method: Method, rows: int, draws: int, *, seed: int, warmup: int) -> None:
        self.problem, self.near, self.rows, self.count = problem, method.near, rows, len(problem.z) // 2
        self.random, self.coins = (torch.Generator().manual_seed(seed + k) for k in range(2))
        self.sampler, self.step = method.make(draws, Counter.of(seed)), 0
        self.sampler.update(problem.bank)
        self.batches = None
        if method.group:
            self.batches = Drawn(
                self.count, rows, group=method.group, proposal=head_tail(problem), counter=Counter.of(seed)
            )
            self.batches.update(problem.bank)
            self.stream = chain.from_iterable(repeat(self.batches))
        if not method.warm:
            return
        if isinstance(self.sampler, Emc2):
            start = torch.multinomial(problem.of_rows, 1, generator=self.coins)
            self.sampler.chains.copy_(start.view(2, self.count).T)
        for _ in range(warmup):
            for batch in torch.randperm(self.count, generator=self.coins)[: self.count // rows * rows].split(rows):
                self.visit(batch, encode=False)

    def next(self) -> Tensor:
        """Rows (B,): uniform, drawn, or seeds at random, each with those nearest to it in the bank and not yet in."""
        if self.batches is not None:
            return torch.tensor(next(self.stream))
        if not self.near:
            return torch.randperm(self.count, generator=self.random)[: self.rows]
        vectors, left = self.problem.bank.vectors, torch.ones(self.count)
        while (inside := int((left == 0).sum())) < self.rows:
            seed = torch.multinomial(left, 1, generator=self.random)
            cosines = (vectors @ vectors[seed[0]]).masked_fill(left == 0, -torch.inf)
            left[cosines.topk(min(self.near, self.rows - inside)).indices] = 0
        return (left == 0).nonzero()[:, 0]

    def draw(self, rows: Tensor) -> tuple[Ticket, Tensor]:
        """The ticket, and which of the 2N embeddings the step makes (2B + E,), drawn rows under a random view."""
        queries = unit_rows(self.problem.z[rows] + self.problem.z[rows + self.count])
        self.step += 1
        ticket = self.sampler.draw(rows, step=self.step, queries=queries if self.sampler.fresh_queries else None)
        drawn = ticket.further
        view = torch.randint(2, (len(drawn),), generator=self.coins)
        return ticket, torch.cat((rows, rows + self.count, drawn + view * self.count))

    def visit(self, rows: Tensor, *, encode: bool = True) -> tuple[EncodedBatch, Negatives]:
        """One step as a trainer makes it, up to the negatives; without `encode` the known embeddings are read."""
        ticket, at = self.draw(rows)
        encoder = self.problem.encoder if encode else None
        z = self.problem.z[at] if encoder is None else encoder(self.problem.inputs[at])
        meeting = None if self.batches is None else self.batches.meeting(rows)
        batch = EncodedBatch.from_views(rows, z, ticket.further, meeting=meeting)
        found, _ = self.sampler(batch, ticket)
        found.commit()
        return batch, found


def fitted(problem: Problem, method: Method, rows: int, encodings: int) -> tuple[int, int]:
    """Rows and draws of the largest steps that make `encodings` on average; 0 draws where even one is too many."""

    def cost(size: int, draws: int) -> float:
        trial = Trial(problem, method, size, draws, seed=7, warmup=0)
        return sum(len(trial.draw(trial.next())[1]) for _ in range(30)) / 30

    if method.group:
        return encodings // 2 // method.group * method.group, 0
    by_rows = method.fits == "rows"
    low, high = (1, encodings // 2 + 1) if by_rows else (0, 16 * encodings)
    while high - low > 1:
        middle = (low + high) // 2
        fits = cost(*((middle, 0) if by_rows else (rows, middle))) <= encodings
        low, high = (middle, high) if fits else (low, middle)
    return (low, 0) if by_rows else (rows, low)


def measure(problem: Problem, method: Method, rows: int, draws: int, *, half: int, warmup: int) -> dict[str, float]:
    """The columns of one row, over two independent halves of `half` batches each."""
    exact = problem.gradients.mean(0)
    sums, encodings = torch.zeros(7, dtype=torch.float64), 0
    off = torch.zeros(2, half, len(exact))
    for side, seed in enumerate((100, 200)):
        trial = Trial(problem, method, rows, draws, seed=seed, warmup=warmup)
        for t in range(half):
            at = trial.next()
            batch, negatives = trial.visit(at)
            encodings += 2 * rows + len(batch.drawn)
            sums[5:] += directions(problem, batch, negatives)
            if problem.encoder is None:
                continue
            value = surrogate(batch, negatives, temperature=problem.temperature)
            parts = torch.autograd.grad(value, list(problem.encoder.parameters()))
            estimate, of_anchors = torch.cat([part.flatten() for part in parts]), problem.gradients[at].mean(0)
            off[side, t] = estimate - (exact if method.near or method.group else of_anchors)
            squares = [v.square().sum() for v in (estimate - exact, of_anchors - exact, estimate - of_anchors)]
            cosines = [torch.cosine_similarity(v, exact, dim=0) for v in (estimate, of_anchors)]
            sums[:5] += torch.stack(squares + cosines)
    error, anchors, negative, *others = (sums / (2 * half)).tolist()
    products, size = off[0] @ off[1].T, float(exact.norm()) or 1.0
    bias = max(0.0, float(products.mean()))
    lengths = [math.sqrt(x) / size for x in (error, bias, max(0.0, error - bias), anchors, negative)]
    noise = math.sqrt(2 * float(products.std()) / half) / size
    found = dict(zip(COLUMNS, (*lengths, *others)))
    return {"encodings": encodings / (2 * half), **found, "bias_noise": noise}


@torch.no_grad()
def directions(problem: Problem, batch: EncodedBatch, negatives: Negatives) -> Tensor:
    """The columns `tangent` and `mean` of one batch: (2,)."""
    at = torch.cat((batch.rows, batch.rows + len(problem.z) // 2))
    weights = negatives.weights / negatives.weights.sum(1, keepdim=True).clamp(min=1e-12)
    z, exact = problem.z[at], problem.means[at]
    off = weights @ batch.candidates - exact
    tangent = [(v - (v * z).sum(1, keepdim=True) * z).norm(dim=1) for v in (off, exact)]
    return torch.stack(((tangent[0] / tangent[1]).mean(), (off.norm(dim=1) / exact.norm(dim=1)).mean()))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", choices=("mnist", "digits"), default="mnist")
    arguments.add_argument("--temperature", type=float, default=0.07)
    arguments.add_argument("--same-views", action="store_true", help="both views of a row are one: chains are exact")
    arguments.add_argument("--encodings", type=int, nargs="+", default=[64, 128])
    arguments.add_argument("--batches", type=int, default=150)
    arguments.add_argument("--cosine", type=float, default=0.97)
    arguments.add_argument("--steps", type=int, default=500, help="of pre-training")
    arguments.add_argument("--warmup", type=int, default=2, help="epochs of visits before chains are measured")
    arguments.add_argument("--only", nargs="+", default=[""], help="methods whose name holds one of these")
    arguments.add_argument("--out", help="a CSV file for the rows")
    arguments.add_argument("--seed", type=int, default=0)
    options = arguments.parse_args()
    if options.batches < 4:
        arguments.error("--batches: two independent halves of at least two batches each")
    started = time.perf_counter()
    lag = 0
    columns: tuple[str, ...] = COLUMNS
    if options.data == "digits":
        columns, z = COLUMNS[-2:], truth()
        bank, z = moved(z, options.cosine, seed=options.seed + 1), torch.cat((z, z)).float()
        problem = known(options.temperature, z, bank, z, None, z.new_zeros(len(bank), 0))
    else:
        settings = (options.temperature, options.cosine, options.steps, options.seed)
        problem, lag = mnist(*settings, same=options.same_views)
    first, second = problem.z.chunk(2)
    pairwise, age = mean_cosine(first), float((unit_rows(first + second) * problem.bank.vectors).sum(1).mean())
    effective = float((1 / problem.of_rows.square().sum(1)).median())
    print(f"{len(first)} rows, β = {1 / options.temperature:.2f}, π on {effective:.1f} rows (median)")
    print(f"mean pairwise cosine {pairwise:.3f}; bank at mean cosine {age:.3f}, {lag} steps old")
    if pairwise > COLLAPSED:
        raise SystemExit(f"mean pairwise cosine above {COLLAPSED}: the encoder has collapsed, and no gradient is left")
    chosen = [method for method in methods(problem) if any(word in method.name for word in options.only)]
    written = []
    for encodings in (0, *options.encodings):
        title = f"At {encodings} encodings" if encodings else "Without free draws, at their own cost"
        print(
            f"\n{title}\n\n| method | B | draws | encodings | {' | '.join(columns)} |\n|{'---|' * (4 + len(columns))}"
        )
        for method in chosen:
            sizes = [b for b in sorted({4, 16, 32, 64, 3 * encodings // 8 or 4}) if not encodings or 2 * b < encodings]
            sizes = [b for b in sizes if b % max(1, method.group) == 0]
            if method.fits == "rows" and encodings:
                sizes = [0]
            for size in sizes if encodings or method.fits == "rows" else []:
                rows, draws = fitted(problem, method, size, encodings) if encodings else (size, 0)
                if method.fits == "draws" and not draws:
                    continue
                values = measure(problem, method, rows, draws, half=options.batches // 2, warmup=options.warmup)
                cells = [f"{values[name]:.2f}" for name in columns]
                if "bias" in columns and values["bias"] < values["bias_noise"]:
                    cells[1] = f"<{values['bias_noise']:.2f}"
                print(
                    f"| {method.name} | {rows} | {draws or ''} | {values['encodings']:.0f} | {' | '.join(cells)} |",
                    flush=True,
                )
                written.append({"at": encodings, "method": method.name, "B": rows, "draws": draws, **values})
    print(f"\n{time.perf_counter() - started:.0f} s")
    if options.out and written:
        with open(options.out, "w", newline="") as file:
            writer = csv.DictWriter(file, written[0].keys())
            writer.writeheader()
            writer.writerows(written)


if __name__ == "__main__":
    main()
