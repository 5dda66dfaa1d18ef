"""A device that is none: tensors said to be on `meta` that compute on the CPU, for what a GPU would refuse or wait for.

Inside of `with StandIn() as seen:` a tensor made on or moved to `meta` is a `Tagged` one. As on a GPU, an operation
between it and a CPU tensor with dimensions raises, `.numpy()` does too, and what the host has to wait for is counted:

    syncs      a value or a size that the host asks for: item, bool, tolist, nonzero, unique, copies to the host
    launches   operations that are more than another view of a tensor
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

DEVICE = torch.device("meta")
WAITS = {
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_consecutive", "unique_dim", "equal",
    "repeat_interleave", "is_nonzero", "bincount",
}  # fmt: skip
"""Operations whose result's value or size the host has to know."""
ANYWHERE = {"index", "index_put", "index_put_", "_index_put_impl_", "_to_copy", "copy_"}
"""Operations that take tensors of the CPU as well."""


class Tagged(Tensor):
    """A tensor that says it is on the stand-in; `held` is where its numbers are."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Tagged:
        made = Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=DEVICE, requires_grad=held.requires_grad,
        )  # fmt: skip
        made.held = held.detach()
        return made

    def __repr__(self, **_: Any) -> str:
        return f"Tagged({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func}: a tensor of the stand-in is used outside of it")


class StandIn(TorchDispatchMode):
    """Computes for `Tagged` tensors, and counts.

    Attributes:
        syncs, launches: how many there were, by operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.syncs, self.launches = Counter[str](), Counter[str]()
        self._methods = _Methods(self)

    def __enter__(self) -> StandIn:
        self._methods.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *about: Any) -> None:
        super().__exit__(*about)
        self._methods.__exit__(*about)

    def clear(self) -> None:
        """Count from 0."""
        self.syncs.clear()
        self.launches.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func._schema.name.removeprefix("aten::")
        flat, spec = tree_flatten((args, kwargs))
        tagged = any(isinstance(each, Tagged) for each in flat)
        target = kwargs.get("device")
        made = target is not None and torch.device(target) == DEVICE
        if not tagged and not made:
            return func(*args, **kwargs)
        plain = [each for each in flat if isinstance(each, Tensor) and not isinstance(each, Tagged) and each.ndim]
        if tagged and plain and name not in ANYWHERE:
            raise RuntimeError(f"{name}: expected all tensors on one device, found meta and cpu {plain[0].shape}")
        held = [each.held if isinstance(each, Tagged) else each for each in flat]
        a, k = tree_unflatten(held, spec)
        if "device" in k:
            k["device"] = torch.device("cpu")
        if k.get("pin_memory"):
            k["pin_memory"] = False
        home = tagged and name == "_to_copy" and target is not None and not made
        out_there = not home
        if name == "copy_":
            home, out_there = not isinstance(args[0], Tagged), True
        masks = name.startswith(("index", "_index")) and len(a) > 1 and isinstance(a[1], list | tuple)
        asks = masks and any(isinstance(i, Tagged) and i.dtype == torch.bool for i in args[1])
        if name in WAITS or home or asks:
            self.syncs[name] += 1
        if not func.is_view and name not in ("_local_scalar_dense", "detach", "lift_fresh", "empty"):
            self.launches[name] += 1
        result = func(*a, **k)
        if not out_there or name in ("_local_scalar_dense", "equal", "is_nonzero"):
            return result
        known = {id(each.held): each for each in flat if isinstance(each, Tagged)}
        if func._schema.is_mutable and name.endswith("_") and not name.startswith("__"):
            return args[0]
        return tree_map_only(Tensor, lambda t: known[id(t)] if id(t) in known else Tagged(t), result)


class _Methods(TorchFunctionMode):
    """What does not come to a dispatch: methods that read a tensor's memory."""

    def __init__(self, seen: StandIn) -> None:
        super().__init__()
        self._seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        first = args[0] if args else None
        if isinstance(first, Tagged):
            if func in (Tensor.numpy, Tensor.__array__):
                raise TypeError("can't convert a tensor of the stand-in to numpy; use .cpu() first")
            if func is Tensor.tolist:
                self._seen.syncs["tolist"] += 1
                return first.held.tolist()
            if func is Tensor.new_tensor:  # which is made inside of torch, past every dispatch
                return first.held.new_tensor(*args[1:], **(kwargs or {})).to(DEVICE)
            if func is Tensor.__deepcopy__:
                return first.clone().detach().requires_grad_(first.requires_grad)
        if func is torch.tensor and (kwargs or {}).get("device") is not None:
            kwargs = dict(kwargs)
            device, learned = kwargs.pop("device"), kwargs.pop("requires_grad", False)
            return func(*args, **kwargs).to(device).requires_grad_(learned)
        return func(*args, **(kwargs or {}))
