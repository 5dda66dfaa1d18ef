"""A bag of static token embeddings with a small perceptron on it: thousands of texts a second on one core.

    m = unit(Σ_t e^{a_t} W_t)          z = unit(m + MLP(m))

W: a table of token embeddings, a_t a learned weight a token. Where the table is of a trained model, such as wordllama
or model2vec, the encoder begins as its plain mean, for the last layer of the MLP begins at zero. Gradients of W are
sparse, of the step's tokens alone, and so is what optim.type=adamw does with them (`negbank.train.lazy`).
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from negbank.bounds import Annotated, Ge, checked
from negbank.train.data.text.tokenizers import model_folder, packaged
from negbank.train.data.text.tokens import Tokens


class Static(nn.Module):
    """Tokens of n texts to unit vectors (n, D).

    Args:
        table: (V, D) token embeddings, scaled here to a mean norm of 1.
        hidden: width of the perceptron; 0 for none.
        trained: whether the table is trained, too; the weights a_t are.
    """

    def __init__(self, table: Tensor, hidden: int, *, trained: bool) -> None:
        super().__init__()
        width = table.shape[1]
        self.sparse = True  # the gradients of its tables are
        self.table = nn.Parameter(table / table.norm(dim=1).mean(), requires_grad=trained)
        self.weight = nn.Parameter(torch.zeros(len(table), 1))
        self.mlp = nn.Sequential()
        if hidden:
            last = nn.Linear(hidden, width)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), last)

    def forward(self, texts: Tokens) -> Tensor:
        """Unit vectors (n, D) in float32, or float64 if the table is."""
        distinct, ids = texts.ids.unique(return_inverse=True)
        rows, weight = (F.embedding(distinct, each, sparse=True) for each in (self.table, self.weight))
        share = weight.exp()[ids, 0].to(rows.dtype)
        mean = F.normalize(F.embedding_bag(ids, rows, texts.starts, mode="sum", per_sample_weights=share), dim=1)
        found = mean + self.mlp(mean) if len(self.mlp) else mean
        return F.normalize(found.to(torch.promote_types(found.dtype, torch.float32)), dim=1)


@checked
def static(
    *,
    vocabulary: int,
    tokenizer: str,
    table: str = "auto",
    dim: Annotated[int, Ge(2)] = 256,
    hidden: Annotated[int, Ge(0)] = 256,
    trained: bool = True,
) -> Static:
    """A bag of static token embeddings with a small perceptron on it: fast on a CPU.

    Args:
        vocabulary: ids of the data's tokenizer.
        tokenizer: its name.
        table: auto: of the data's tokenizer where it has one, else random; random; or a folder with a safetensors file
            of one matrix, as model2vec writes it.
        dim: width of a random table, and so of embeddings; of another table the first so many columns.
        hidden: width of the perceptron; 0 for none.
        trained: whether the table is trained, and not only weights of tokens and the perceptron.

    Raises:
        ValueError: for a table of another vocabulary, or that cannot be read.
    """
    source = tokenizer if table == "auto" and (tokenizer == "wordllama" or model_folder(tokenizer)) else table
    if source in ("auto", "random"):
        return Static(torch.randn(vocabulary, dim) / dim**0.5, hidden, trained=trained)
    found = token_table(source)
    if len(found) != vocabulary:
        raise ValueError(
            f"encoder.table={table}: {len(found)} tokens, data.tokenizer={tokenizer} has {vocabulary}; take the table "
            f"of that tokenizer, or table=random"
        )
    return Static(found[:, :dim].contiguous(), hidden, trained=trained)


def token_table(name: str) -> Tensor:
    """The token embeddings (V, D) float32 of wordllama, or of the largest matrix in a folder's safetensors file.

    Raises:
        ValueError: where there is none, or it cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = packaged("wordllama", "weights") if name == "wordllama" else model_folder(name)
    paths = sorted((folder or Path(name)).glob("*.safetensors"))
    if not paths:
        raise ValueError(
            f"encoder.table={name}: no .safetensors file there; take wordllama, random, or a folder with one"
        )
    try:
        tensors = load_file(str(paths[0]))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"encoder.table={name}: {paths[0]} cannot be read ({error}); write it again") from None
    matrices = [each for each in tensors.values() if each.ndim == 2]
    if not matrices:
        raise ValueError(f"encoder.table={name}: {paths[0]} holds no matrix; give token embeddings (V, D)")
    return max(matrices, key=len).float()
