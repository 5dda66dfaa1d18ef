"""What tells a model, and the cache of embeddings by content."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from negbank.train.mining.encoder import Encoder, fingerprint


def test_a_fingerprint_follows_weights_not_names():
    first, second = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    assert fingerprint(first) != fingerprint(second)
    second.load_state_dict(first.state_dict())
    assert fingerprint(first) == fingerprint(second)
    assert fingerprint(len) is None


class Counted(torch.nn.Module):
    """Encodes a text by its length, and counts the texts."""

    encoded = 0

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def encode(self, texts):
        Counted.encoded += len(texts)
        return torch.tensor([[float(len(text)), 1.0] for text in texts]) * self.scale


def test_a_write_that_fails_leaves_no_embeddings_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("negbank.train.mining.encoder._found", lambda name: Counted())
    encoder, texts = Encoder("counted"), ["a", "bb", "ccc"]
    save = np.save

    def broken(file, rows):
        save(file, rows)
        raise OSError("no space left")

    monkeypatch.setattr(np, "save", broken)
    for _ in range(2):
        with pytest.raises(OSError, match="no space"):
            encoder.embed(texts, "document", None, tmp_path, progress=False)
        assert not list(tmp_path.iterdir())
    monkeypatch.setattr(np, "save", save)
    Counted.encoded = 0
    for _ in range(2):
        found = encoder.embed(texts, "document", None, tmp_path, progress=False)
        assert found[:, 0].tolist() == [1, 2, 3]
    assert Counted.encoded == 3
    assert [path.suffix for path in tmp_path.iterdir()] == [".npy"]
