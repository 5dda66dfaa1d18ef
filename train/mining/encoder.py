"""Texts to embeddings, kept by content: the same weights, prompt and texts are encoded once.

    key = SHA-256(weights, tokenizer, architecture; side and prompt; texts)

A model that was fine-tuned under the same name has other weights and so another key.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from negbank import files
from negbank.owner import sweep

CHUNK = 2048
"""Texts encoded between two steps of the progress bar."""


class Encoder:
    """An encoder found by name.

    Args:
        name: "module:attribute", a callable texts → (n, D) or an object with `encode`; "module:function()", a function
            that makes one; an installed package that offers `load_model()`; or what `SentenceTransformer` takes.
        batch_size: texts of a forward pass, where the encoder takes it.

    Raises:
        ValueError: for a name that nothing answers to.
        ImportError: when sentence-transformers is needed and missing.
    """

    def __init__(self, name: str, batch_size: int = 32) -> None:
        self.name, self._batch_size = name, batch_size
        self._model = _found(name)
        self.fingerprint = fingerprint(self._model)

    def embed(
        self, texts: Sequence[str], side: str, prompt: str | None, cache: Path | None, *, progress: bool
    ) -> np.ndarray:
        """Embeddings (n, D) float32 of texts, from the cache where they are in it.

        Args:
            side: "query" or "document", for models that encode them differently.
            prompt: put before every text; the model's own for this side by default.
            cache: a folder; nothing is kept without one, or when the encoder has no weights to tell it by. What is
                damaged in it is encoded again.
        """
        if cache is None or self.fingerprint is None:
            return np.concatenate(list(self._chunks(texts, side, prompt, progress)))
        key = hashlib.sha256(f"{self.fingerprint}\0{side}\0{prompt}".encode())
        for text in texts:
            key.update(f"{len(text)}\0{text}".encode())
        path = files.kept(cache / f"{key.hexdigest()}.npy")
        if path is None:
            rows = np.concatenate(list(self._chunks(texts, side, prompt, progress)))
            cache.mkdir(parents=True, exist_ok=True)
            sweep(cache, f"*.npy.*{files.DRAFT}")
            path = files.keep(cache / f"{key.hexdigest()}.npy", lambda file: np.save(file, rows))
        return np.load(path, mmap_mode="r")

    def _chunks(self, texts: Sequence[str], side: str, prompt: str | None, progress: bool) -> Any:
        encode = self._encode(side, prompt)
        with tqdm(total=len(texts), desc=f"encoding {side}", unit=" texts", disable=not progress) as bar:
            for at in range(0, len(texts), CHUNK):
                part = list(texts[at : at + CHUNK])
                found = encode(part)
                rows = np.asarray(found.detach().cpu() if isinstance(found, torch.Tensor) else found, dtype=np.float32)
                if rows.ndim != 2 or len(rows) != len(part):
                    raise ValueError(f"encoder={self.name}: gave shape {rows.shape} for {len(part)} texts")
                bar.update(len(part))
                yield rows

    def _encode(self, side: str, prompt: str | None) -> Callable[[list[str]], Any]:
        model = self._model
        if not hasattr(model, "encode"):
            return model if prompt is None else lambda texts: model([prompt + text for text in texts])
        method = getattr(model, f"encode_{side}", model.encode)
        known = inspect.signature(method).parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in known.values())
        wanted = {"batch_size": self._batch_size, "convert_to_numpy": True, "show_progress_bar": False}
        given = {name: value for name, value in wanted.items() if name in known or takes_any}
        if prompt is not None and ("prompt" in known or takes_any):
            return lambda texts: method(texts, prompt=prompt, **given)
        return lambda texts: method([(prompt or "") + text for text in texts], **given)


def fingerprint(model: Any) -> str | None:
    """SHA-256 of a model's weights, architecture and vocabulary; None for a callable without a `state_dict`."""
    if not hasattr(model, "state_dict"):
        return None
    digest = hashlib.sha256(repr(model).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        if isinstance(value, torch.Tensor):
            data = value.detach().cpu().contiguous()
            digest.update(f"{data.dtype}{tuple(data.shape)}".encode())
            digest.update(data.flatten().view(torch.uint8).numpy().data if data.numel() else b"")
        else:
            digest.update(repr(value).encode())
    vocabulary: dict[str, int] = getattr(getattr(model, "tokenizer", None), "get_vocab", dict)()
    digest.update(repr(sorted(vocabulary.items())).encode())
    return digest.hexdigest()


def imported(name: str, argument: str) -> Any:
    """What "module:attribute" names; of "module:function()", what the function returns.

    Raises:
        ValueError: naming the argument, where there is no such module or attribute.
    """
    module, _, attribute = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.removesuffix("()").split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{argument}={name}: {error}; expected module:callable, importable from here") from None
    return found() if attribute.endswith("()") else found


def scorer(name: str) -> Any:
    """The callable (query ids, corpus ids) → scores that "module:attribute" names.

    Raises:
        ValueError: where there is none, or something else.
    """
    found = imported(name, "rescore")
    if not callable(found):
        raise ValueError(f"rescore={name}: a {type(found).__name__}; expected (query ids, corpus ids) to scores")
    return found


def _found(name: str) -> Any:
    if ":" in name and not Path(name).exists():
        found = imported(name, "encoder")
        if not callable(found) and not hasattr(found, "encode"):
            raise ValueError(f"encoder={name}: a {type(found).__name__}; expected a callable or an object with encode")
        return found
    package = name.replace("-", "_")
    if package.isidentifier() and importlib.util.find_spec(package) is not None:
        loader = getattr(importlib.import_module(package), "load_model", None)
        if loader is not None:
            return loader()
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise ImportError(f"encoder={name}: needs sentence-transformers: pip install 'negbank[text]'") from None
    try:
        return SentenceTransformer(name)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"encoder={name}: no installed model of this name ({reason}); give a folder, a package, or module:callable"
        ) from None
