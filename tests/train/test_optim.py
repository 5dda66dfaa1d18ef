"""Optimisers: LARS against lightly's and against its equations, exact resumption, groups, schedule, table."""

import copy
import itertools
import math

import pytest
import torch
from lightly.utils.lars import LARS
from torch import Tensor, nn

from negbank.train import registry
from negbank.train.lars import Lars
from negbank.train.optim import cosine_with_warmup, parameter_groups

OPTIMISERS = tuple(registry.REGISTRY["optim"])


def build(name: str, module: nn.Module, **options: object) -> torch.optim.Optimizer:
    return registry.target("optim", name)(module, **options)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5)
    ).double()


def backward(module: nn.Module, step: int) -> None:
    images = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    module.zero_grad()
    module(images).square().mean().backward()


def assert_equal(module: nn.Module, other: nn.Module, tolerance: float = 0.0) -> None:
    for parameter, expected in zip(module.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_lars_is_lightlys(momentum: float) -> None:
    ours, theirs = model(), model()
    optimiser = Lars(parameter_groups(ours, 1e-2), lr=0.1, momentum=momentum, trust_coefficient=0.2)
    reference = LARS(parameter_groups(theirs, 1e-2), lr=0.1, momentum=momentum, trust_coefficient=0.2, eps=0.0)
    for step in range(8):
        for module, stepper in ((ours, optimiser), (theirs, reference)):
            backward(module, step)
            stepper.step()
    assert_equal(ours, theirs, tolerance=1e-12)
    assert not torch.equal(next(ours.parameters()), next(model().parameters()))


def test_lars_follows_its_equations_with_a_changing_rate() -> None:
    ours, expected = model(), model()
    optimiser = Lars(parameter_groups(ours, 1e-2), lr=1.0, momentum=0.9)
    velocity: dict[Tensor, Tensor] = {}
    for step in range(6):
        rate = 0.5 / (1 + step)
        for group in optimiser.param_groups:
            group["lr"] = rate
        backward(ours, step)
        optimiser.step()
        backward(expected, step)
        for w in expected.parameters():
            assert w.grad is not None
            if w.ndim > 1:
                trust = 0.001 * w.norm().item() / (w.grad.norm().item() + 1e-2 * w.norm().item())
                update = trust * (w.grad + 1e-2 * w.detach())
            else:
                update = w.grad.clone()
            velocity[w] = 0.9 * velocity.get(w, torch.zeros_like(w.detach())) + rate * update
            w.data -= velocity[w]
    assert_equal(ours, expected, tolerance=1e-12)


def test_lars_steps_from_zero_weights_and_stays_without_gradient() -> None:
    weight, still, unused = (nn.Parameter(torch.full((2, 2), value)) for value in (0.0, 0.0, 3.0))
    weight.grad, still.grad = torch.ones(2, 2), torch.zeros(2, 2)
    Lars([weight, still, unused], lr=0.1, weight_decay=0.1).step()
    torch.testing.assert_close(weight.detach(), torch.full((2, 2), -0.1))
    assert torch.equal(still.detach(), torch.zeros(2, 2))
    assert torch.equal(unused.detach(), torch.full((2, 2), 3.0))


def test_lars_adapts_no_vectors_even_in_a_decayed_group() -> None:
    bias = nn.Parameter(torch.ones(3))
    bias.grad = torch.ones(3)
    Lars([bias], lr=0.5, weight_decay=0.3).step()
    torch.testing.assert_close(bias.detach(), torch.full((3,), 0.5))


def test_lars_returns_the_loss_of_a_closure() -> None:
    weight = nn.Parameter(torch.ones(2, 2))

    def closure() -> float:
        loss = weight.square().sum()
        loss.backward()
        return loss.item()

    assert Lars([weight], lr=0.1).step(closure) == 4.0


@pytest.mark.parametrize("name", sorted(OPTIMISERS))
def test_resumes_bit_identically(name: str) -> None:
    def steps(module: nn.Module, optimiser: torch.optim.Optimizer, numbers: range) -> None:
        for step in numbers:
            backward(module, step)
            optimiser.step()

    whole = model()
    optimiser = build(name, whole, lr=0.05, weight_decay=1e-2)
    steps(whole, optimiser, range(3))
    resumed = copy.deepcopy(whole)
    state = copy.deepcopy(optimiser.state_dict())
    steps(whole, optimiser, range(3, 7))

    again = build(name, resumed, lr=9.0)
    again.load_state_dict(state)
    steps(resumed, again, range(3, 7))
    assert_equal(resumed, whole)


def test_groups() -> None:
    module = model()
    next(module.parameters()).requires_grad_(False)
    decayed, rest = parameter_groups(module, 0.1)
    assert [p.ndim for p in decayed["params"]] == [2]
    assert [p.ndim for p in rest["params"]] == [1, 1, 1]
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert len(parameter_groups(nn.Linear(2, 2, bias=False), 0.1)) == 1


def test_build_passes_the_hyperparameters() -> None:
    for name in OPTIMISERS:
        for group, decay in zip(build(name, model(), lr=0.3, weight_decay=0.2).param_groups, (0.2, 0.0), strict=True):
            assert (group["lr"], group["weight_decay"]) == (0.3, decay)
    for name in ("sgd", "lars"):
        assert build(name, model(), lr=1, momentum=0.7).param_groups[0]["momentum"] == 0.7
    for name in ("adam", "adamw"):
        assert build(name, model(), lr=1, betas=(0.5, 0.6)).param_groups[0]["betas"] == (0.5, 0.6)


@pytest.mark.parametrize(
    ("argument", "value"), [("lr", -1.0), ("momentum", 1.0), ("weight_decay", -0.1), ("trust_coefficient", 0.0)]
)
def test_lars_rejects(argument: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{argument}={value}"):
        Lars(model().parameters(), **{"lr": 0.1, argument: value})


def test_schedule() -> None:
    factors = [cosine_with_warmup(step, 100, 10) for step in range(101)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5)
    assert factors[32] == pytest.approx(0.5 * (1 + math.cos(math.pi * 22 / 90)))
    assert factors[100] == 0.0
    assert all(late < early for early, late in itertools.pairwise(factors[10:]))
    assert cosine_with_warmup(0, 5, 0) == 1.0


@pytest.mark.parametrize(
    ("step", "steps", "warmup", "match"), [(0, 5, 5, "warmup=5"), (0, 5, -1, "warmup=-1"), (6, 5, 1, "step=6")]
)
def test_schedule_rejects(step: int, steps: int, warmup: int, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        cosine_with_warmup(step, steps, warmup)
