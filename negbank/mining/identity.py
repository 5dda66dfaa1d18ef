"""Whether two callables compute the same: a digest of all that one computes by, the same in every process.

Code, defaults, what it closes over, the globals it names, attributes of its object, weights. What comes from another
package stands for itself by its name.
"""

from __future__ import annotations

import hashlib
import pickle
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor


def identity(rescore: Any) -> str | None:
    """The digest of a scorer; None of None.

    Raises:
        ValueError: where it cannot be told; a string attribute `fingerprint` says it.
    """
    if rescore is None:
        return None
    told = _Digest(getattr(rescore, "__module__", None) or type(rescore).__module__)
    try:
        told.add(rescore)
    except (TypeError, AttributeError, ValueError, RecursionError, pickle.PicklingError) as error:
        raise ValueError(
            f"rescore: what {rescore!r} computes by cannot be told ({error}), and out= compares it; "
            f"give it an attribute `fingerprint`, a string that names it"
        ) from None
    return told.sha.hexdigest()


class _Digest:
    def __init__(self, module: str) -> None:
        self.sha, self._home, self._seen = hashlib.sha256(), module.partition(".")[0], dict[int, Any]()

    def add(self, value: Any) -> None:
        """What a value is, and then what it is made of."""
        self.sha.update(f"{type(value).__name__}:".encode())
        if isinstance(getattr(value, "fingerprint", None), str):
            self.sha.update(value.fingerprint.encode())
        elif isinstance(value, list | tuple):
            self._all(len(value), *value)
        elif isinstance(value, dict):
            self._all(len(value), *(part for key in sorted(value, key=repr) for part in (key, value[key])))
        elif isinstance(value, set | frozenset):
            self._all(len(value), *sorted(value, key=repr))
        elif isinstance(value, CodeType):
            self._all(value.co_code, value.co_names, *value.co_consts)
        elif isinstance(value, Tensor):
            value = value.detach().cpu()
            self._all(str(value.dtype), (value.float() if value.dtype == torch.bfloat16 else value).numpy())
        elif isinstance(value, ModuleType | BuiltinFunctionType):
            self.sha.update(value.__name__.encode())
        elif isinstance(value, MethodType):
            self._all(value.__self__, value.__func__)
        elif isinstance(value, partial):
            self._all(value.func, value.args, value.keywords)
        elif isinstance(value, torch.nn.Module):
            self._all(repr(value), type(value), dict(value.state_dict()))
        elif isinstance(value, FunctionType | type) or type(value).__flags__ & (1 << 9):  # an object of a Python class
            if id(value) not in self._seen:
                self._seen[id(value)] = value
                self._made(value)
        else:
            self.sha.update(pickle.dumps(value))

    def _all(self, *parts: Any) -> None:
        for part in parts:
            self.add(part)

    def _made(self, value: Any) -> None:
        if isinstance(value, FunctionType | type):
            self.sha.update(f"{value.__module__}.{value.__qualname__}".encode())
            if value.__module__.partition(".")[0] != self._home:
                return
        if isinstance(value, type):
            self._all({k: v for k, v in vars(value).items() if isinstance(v, FunctionType)}, value.__bases__)
        elif isinstance(value, FunctionType):
            names, scope = value.__code__.co_names, value.__globals__
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            self._all(value.__code__, value.__defaults__, value.__kwdefaults__, cells)
            self.add({name: scope[name] for name in names if name in scope})
        else:
            self._all(type(value), *value.__reduce_ex__(4)[1:])
