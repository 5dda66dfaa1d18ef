from __future__ import annotations

import math

import pytest
import torch
from lightly.loss import DCLLoss

from negbank import Exclusions
from negbank.samplers.negatives import EncodedBatch, ISogClr, SogClr
from negbank.train.losses import surrogate

N, B, D = 16, 6, 5


def raw(seed, rows=B):
    """Projections of both views (2·rows, D) before they are normalised."""
    z = torch.randn(2 * rows, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return z.requires_grad_()


def embed(x, rows):
    return EncodedBatch.from_views(rows, torch.nn.functional.normalize(x, dim=1))


def batches(count, seed=0):
    """Batches that meet again, with rows seen before and rows never seen."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(N, generator=generator)[:B] for _ in range(count)]


def gradient(loss, x):
    return torch.autograd.grad(loss, x)[0]


def step(sampler, x, rows, temperature, at=0):
    """Gradient of the surrogate, and what the sampler gave, at a step."""
    batch = embed(x, rows)
    negatives, info = sampler(batch, sampler.draw(rows, step=at))
    negatives.commit()
    return gradient(surrogate(batch, negatives, temperature=temperature), x), negatives, info


class Literal:
    """SogCLR, anchor by anchor and term by term (Yuan et al. 2022, algorithm 1); iSogCLR where ρ is given.

    The gradient of τ log g with respect to the encoder, τ/u ∇g, and that of τ log g + τ ρ with respect to τ (Qiu et al.
    2023, algorithm 1) are each autograd's ∇g over the moving average u.
    """

    def __init__(self, tau, gamma, *, per_view, relative, rho=None, rate=0.0, newest=1.0, bounds=(0.0, 1.0)):
        self.u = {}
        self.tau, self.v = dict.fromkeys(range(N), tau), dict.fromkeys(range(N), 0.0)
        self.gamma, self.per_view, self.relative = gamma, per_view, relative
        self.rho, self.rate, self.newest, self.bounds, self.scale = rho, rate, newest, bounds, tau

    def step(self, x, rows):
        z = torch.nn.functional.normalize(x, dim=1)
        total, seen, slopes = 0.0, {}, {}
        for a in range(2 * B):
            row, view = int(rows[a % B]), a // B
            positive = z[a] @ z[(a + B) % (2 * B)]
            tau = torch.tensor(self.tau[row], dtype=torch.float64, requires_grad=True)
            shift = positive if self.relative else 0.0
            g = sum(torch.exp((z[a] @ z[c] - shift) / tau) for c in range(2 * B) if c % B != a % B) / (2 * B - 2)
            old = self.u.get((row, view if self.per_view else 0))
            u = g.item() if old is None else (1 - self.gamma) * old + self.gamma * g.item()
            seen[row, view] = u
            (slope,) = torch.autograd.grad(tau / u * g, tau, retain_graph=True)
            slopes[row, view] = math.log(u) + (slope.item() - g.item() / u) + (self.rho or 0.0)
            total = total + tau.detach() / u * g - (0.0 if self.relative else positive)
        for row in rows.tolist():
            if self.per_view:
                self.u |= {(row, v): seen[row, v] for v in (0, 1)}
            else:
                self.u[row, 0] = (seen[row, 0] + seen[row, 1]) / 2
            if self.rho is not None:
                slope = (slopes[row, 0] + slopes[row, 1]) / 2
                self.v[row] = (1 - self.newest) * self.v[row] + self.newest * slope
                self.tau[row] = min(max(self.tau[row] - self.rate * self.v[row], self.bounds[0]), self.bounds[1])
        return gradient(total / (2 * B) / self.scale, x)


@pytest.mark.parametrize("per_view", [True, False])
@pytest.mark.parametrize("relative", [True, False])
def test_sogclr_is_the_paper_read_literally(per_view, relative):
    sampler = SogClr(N, temperature=0.3, gamma=0.7, per_view=per_view, relative=relative)
    literal = Literal(0.3, 0.7, per_view=per_view, relative=relative)
    for seed, rows in enumerate(batches(6)):
        got, _, _ = step(sampler, raw(seed), rows, 0.3)
        torch.testing.assert_close(got, literal.step(raw(seed), rows), atol=1e-6, rtol=0)


@pytest.mark.parametrize("per_view", [True, False])
@pytest.mark.parametrize("relative", [True, False])
def test_isogclr_is_the_paper_read_literally(per_view, relative):
    options = {"rho": 0.4, "rate": 0.05, "newest": 0.8}
    sampler = ISogClr(
        N, temperature=0.3, gamma=0.7, per_view=per_view, relative=relative, lowest=0.26, highest=0.36, **options
    )
    literal = Literal(0.3, 0.7, per_view=per_view, relative=relative, bounds=(0.26, 0.36), **options)
    for seed, rows in enumerate(batches(12)):
        got, _, _ = step(sampler, raw(seed), rows, 0.3)
        torch.testing.assert_close(got, literal.step(raw(seed), rows), atol=1e-5, rtol=0)
        expected = torch.tensor([literal.tau[row] for row in range(N)])
        torch.testing.assert_close(sampler.temperatures, expected, atol=1e-5, rtol=0)
    assert 0.36 in literal.tau.values()  # a bound was met
    assert len(set(literal.tau.values())) > 6


def gc_loss(mode, **options):
    """libauc's loss, in double precision."""
    contrastive = pytest.importorskip(
        "libauc.losses.contrastive", reason="pip install --no-deps libauc", exc_type=ImportError
    )
    loss = contrastive.GCLoss(mode, N=N, **options).loss_fn
    for name, value in list(vars(loss).items()):
        if isinstance(value, torch.Tensor):
            setattr(loss, name, value.double())
    return loss


@pytest.mark.parametrize("per_view", [True, False])
def test_sogclr_equals_libauc(per_view):
    """GCLoss keeps one u a row, and sets it at a first visit only where the whole batch is new."""
    theirs = gc_loss("unimodal", tau=0.2, gamma=0.6, device=torch.device("cpu"))
    sampler = SogClr(N, temperature=0.2, gamma=0.6, per_view=per_view)
    rows = torch.randperm(N, generator=torch.Generator().manual_seed(1))[:B]
    for seed in range(4):
        x = raw(seed)
        expected = gradient(theirs(*x.chunk(2), rows), x) / (2 * 0.2)  # the sum of two views, and τ times the loss
        got, _, _ = step(sampler, raw(seed), rows, 0.2)
        if seed < 1 or not per_view:
            torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    if per_view:  # averages of its own for each view are another method from the second visit on
        assert not torch.allclose(got, expected, atol=1e-3)


def test_isogclr_equals_libauc():
    options = {"rho": 0.4, "gamma": 0.6}
    theirs = gc_loss(
        "unimodal", tau=0.3, enable_isogclr=True, eta=0.05, beta=0.8, tau_min=0.2, tau_max=0.5,
        device=torch.device("cpu"), **options,
    )  # fmt: skip
    sampler = ISogClr(
        N, temperature=0.3, rate=0.05, newest=0.8, lowest=0.2, highest=0.5, per_view=False, relative=False, **options
    )
    rows = torch.randperm(N, generator=torch.Generator().manual_seed(1))[:B]
    for seed in range(4):
        x = raw(seed)
        expected = gradient(theirs(*x.chunk(2), rows), x) / (2 * 0.3)
        theirs.learnable_tau, theirs.grad_tau = theirs.learnable_tau.detach(), theirs.grad_tau.detach()
        got, _, _ = step(sampler, raw(seed), rows, 0.3)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(sampler.temperatures.double(), theirs.learnable_tau[:, 0], atol=1e-5, rtol=0)


def test_two_directions_of_pairs_equal_libauc():
    """The bimodal GCLoss leaves out 1/(B − 1): its gradient is B − 1 times that of the loss."""
    theirs = gc_loss("bimodal", tau=0.2, gamma=0.6)
    samplers = [SogClr(N, temperature=0.2, gamma=0.6, views=1, relative=True) for _ in range(2)]
    rows = torch.randperm(N, generator=torch.Generator().manual_seed(1))[:B]
    for seed in range(4):
        x = raw(seed)
        left, right = torch.nn.functional.normalize(x, dim=1).chunk(2)
        expected = gradient(theirs(left, right, rows)[0], x) / (B - 1) / 0.2
        x = raw(seed)
        left, right = torch.nn.functional.normalize(x, dim=1).chunk(2)
        directions = [EncodedBatch.from_pairs(rows, left, right), EncodedBatch.from_pairs(rows, right, left)]
        found = [s(batch, s.draw(rows, step=0))[0] for s, batch in zip(samplers, directions)]
        losses = [surrogate(batch, negatives, temperature=0.2) for batch, negatives in zip(directions, found)]
        for negatives in found:
            negatives.commit()
        torch.testing.assert_close(gradient(sum(losses) / 2, x), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("relative", [True, False])
def test_gamma_1_is_the_softmax_over_negatives_alone(relative):
    """Decoupled contrast (Yeh et al. 2022), which lightly calls DCL: no positive in the denominator, and no memory."""
    sampler = SogClr(N, temperature=0.2, gamma=1.0, relative=relative)
    for seed, rows in enumerate(batches(3)):
        x = raw(seed)
        expected = gradient(DCLLoss(temperature=0.2)(*x.chunk(2)), x)
        got, _, _ = step(sampler, raw(seed), rows, 0.2)
        torch.testing.assert_close(got, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_gamma_1_and_the_full_batch_give_the_global_gradient(temperature, relative):
    """∇ mean_i −β s⁺ + log mean_{j ∈ D_i} exp(β s_ij), over both views of all rows; a stale u changes it."""
    x = raw(3, rows=N)
    z = torch.nn.functional.normalize(x, dim=1)
    own = torch.arange(2 * N) % N
    scores = (z @ z.T / temperature).masked_fill(own[:, None] == own, -torch.inf)
    positive = (z * z.roll(N, 0)).sum(1) / temperature
    exact = gradient((scores.logsumexp(1) - math.log(2 * N - 2) - positive).mean(), x)
    rows = torch.arange(N)
    for gamma in (1.0, 0.5):
        sampler = SogClr(N, temperature=temperature, gamma=gamma, relative=relative)
        step(sampler, raw(4, rows=N), rows, temperature)
        got, _, _ = step(sampler, raw(3, rows=N), rows, temperature)
        assert torch.allclose(got, exact, atol=1e-9, rtol=0) == (gamma == 1)


def test_a_sharp_temperature_does_not_overflow():
    """exp(β s) is 10⁴³ at β = 100, beyond single precision: the same weights as in double precision."""
    x = torch.nn.functional.normalize(torch.randn(2 * B, D, generator=torch.Generator().manual_seed(0)), dim=1)
    x[1], x[B] = x[0], -x[0]
    assert (100 * x @ x.T).exp().isinf().any()
    found = []
    for dtype in (torch.float32, torch.float64):
        sampler = SogClr(N, temperature=0.01, gamma=0.5)
        for _ in range(3):
            batch = EncodedBatch.from_views(torch.arange(B), x.to(dtype))
            negatives, _ = sampler(batch, sampler.draw(batch.rows, step=0))
            negatives.commit()
            weights = negatives.weights
        found.append(weights.double())
        assert sampler.averages.log_u[:B].isfinite().all()
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


def test_a_first_visit_sets_u_whoever_else_is_in_the_batch():
    sampler = SogClr(N, temperature=0.3, gamma=0.25)
    step(sampler, raw(0), torch.arange(B), 0.3)
    before = sampler.averages.log_u.clone()
    rows = torch.arange(B) + B // 2
    z = torch.nn.functional.normalize(raw(1), dim=1).detach()
    own = torch.arange(2 * B) % B
    mean = (z @ z.T / 0.3).masked_fill(own[:, None] == own, -torch.inf).exp().sum(1) / (2 * B - 2)
    step(sampler, raw(1), rows, 0.3)
    after = sampler.averages.log_u[rows].exp().T.flatten()
    new = rows.repeat(2) >= B
    torch.testing.assert_close(after[new].double(), mean[new], atol=1e-5, rtol=1e-5)
    old = before[rows].exp().T.flatten().double()
    torch.testing.assert_close(after[~new].double(), (0.75 * old + 0.25 * mean)[~new], atol=1e-5, rtol=1e-5)
    assert (sampler.averages.log_u[B + B // 2 :] == -torch.inf).all()


def test_gamma_falls_by_a_half_cosine():
    sampler = SogClr(N, temperature=0.3, gamma=0.2, decay=4)
    found = [step(sampler, raw(seed), rows, 0.3, seed)[2]["gamma"] for seed, rows in enumerate(batches(6))]
    half = 0.2 + 0.8 * 0.5
    assert found == pytest.approx([1.0, half + 0.8 * 0.5 * math.sqrt(0.5), half, half - 0.4 * math.sqrt(0.5), 0.2, 0.2])


def test_an_anchor_without_negatives_weighs_nothing_and_changes_nothing():
    exclude = Exclusions(N, groups=(torch.arange(N) >= B).long())
    for sampler in (
        SogClr(N, temperature=0.3, exclude=exclude, relative=True),
        ISogClr(N, temperature=0.3, exclude=exclude, relative=True),
    ):
        mixed = torch.arange(B) + 3
        step(sampler, raw(0), mixed, 0.3)
        state = sampler.state_dict()
        got, negatives, _ = step(sampler, raw(1), torch.arange(B), 0.3)
        assert (negatives.weights == 0).all()
        assert (got == 0).all()
        after = sampler.state_dict()
        assert all(torch.equal(state[key], after[key]) for key in state)


@pytest.mark.parametrize("make", [SogClr, ISogClr])
def test_it_resumes(make):
    first = make(N, temperature=0.3, gamma=0.4, decay=5)
    for seed, rows in enumerate(batches(3)):
        step(first, raw(seed), rows, 0.3, seed)
    second = make(N, temperature=0.3, gamma=0.4, decay=5)
    second.load_state_dict(first.state_dict())
    for seed, rows in enumerate(batches(3, seed=1), start=3):
        (got, negatives, info), (other, others, theirs) = (
            step(made, raw(seed), rows, 0.3, seed) for made in (first, second)
        )
        assert torch.equal(got, other)
        assert torch.equal(negatives.weights, others.weights)
        assert info == theirs
    with pytest.raises(ValueError, match=r"log_u: \(16, 2\) in the state, \(17, 2\) here"):
        make(N + 1, temperature=0.3).load_state_dict(first.state_dict())


def test_bad_input_is_named():
    for make, options, message in [
        (SogClr, {"temperature": 0}, "temperature=0"),
        (SogClr, {"gamma": 0}, "gamma=0: expected a value above 0 and at most 1"),
        (SogClr, {"decay": -1}, "decay=-1"),
        (ISogClr, {"lowest": 0.4}, "lowest=0.4, highest=0.7: expected lowest ≤ temperature=0.3"),
        (ISogClr, {"rho": -1}, "rho=-1"),
        (ISogClr, {"rate": 0}, "rate=0"),
        (ISogClr, {"newest": 0}, "newest=0"),
    ]:
        with pytest.raises(ValueError, match=message):
            make(N, **{"temperature": 0.3, **options})
