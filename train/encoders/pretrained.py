"""A pretrained text model of the transformers library, tuned: all of it, or low-rank updates (Hu et al. 2022, LoRA).

Weights come from safetensors alone, and no code of a model is run. Without a projector embeddings are the pooled states
themselves, as sentence-transformers gives them for a model of pooling and norm.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from negbank.bounds import Annotated, Ge, checked
from negbank.train.data.text.tokenizers import model_folder
from negbank.train.data.text.tokens import Tokens
from negbank.train.encoders.embedder import Embedder
from negbank.train.encoders.transformer import pooled


class Pretrained(nn.Module):
    """Tokens of n texts to pooled states (n, features).

    Args:
        model: of the transformers library, called with input_ids and attention_mask.
        pool: "mean", "first" or "last".
    """

    def __init__(self, model: nn.Module, pool: str) -> None:
        super().__init__()
        config: Any = model.config
        self.model, self.pool, self.features = model, pool, int(config.hidden_size)

    def forward(self, texts: Tokens) -> Tensor:
        """Pooled states (n, features)."""
        ids, inside = texts.padded()
        states = self.model(input_ids=ids, attention_mask=inside.long()).last_hidden_state
        return pooled(states, inside, self.pool)


@checked
def pretrained(
    path: str,
    *,
    vocabulary: int,
    pool: Literal["mean", "first", "last"] = "mean",
    lora: Annotated[int, Ge(0)] = 0,
    dim: Annotated[int, Ge(2)] | None = None,
) -> Embedder:
    """A pretrained text model of the transformers library; give data.tokenizer the same path.

    Args:
        path: a folder, a package that carries one, or a model's name on the hub; safetensors only.
        vocabulary: ids of the data's tokenizer.
        pool: mean over a text's tokens, its first or its last one.
        lora: rank of low-rank updates to all linear layers, which alone are trained then; 0: all weights are.
        dim: width of embeddings, by a linear map from the pooled states; None: the states themselves.

    Raises:
        ValueError: for a model that is not there, or whose vocabulary is not the tokenizer's.
        ImportError: naming the extra to install.
    """
    try:
        from transformers import AutoModel
    except ImportError:
        raise ImportError("encoder.type=pretrained: needs transformers: pip install 'negbank[text]'") from None
    try:
        model = AutoModel.from_pretrained(
            str(model_folder(path) or path), use_safetensors=True, trust_remote_code=False, attn_implementation="sdpa"
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"encoder.path={path}: no model of safetensors there ({str(error).splitlines()[0]}); give a folder, a "
            f"package that carries one, or a name on the hub"
        ) from None
    known = model.get_input_embeddings().num_embeddings
    if vocabulary > known:
        raise ValueError(
            f"encoder.path={path}: knows {known} tokens, the data's tokenizer {vocabulary}; set data.tokenizer={path}"
        )
    backbone = Pretrained(model, pool)
    if lora:
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError:
            raise ImportError("encoder.lora: needs peft: pip install 'negbank[text]'") from None
        model.requires_grad_(False)
        inject_adapter_in_model(LoraConfig(r=lora, lora_alpha=2 * lora, target_modules="all-linear"), model)
    return Embedder(backbone, nn.Identity() if dim is None else nn.Linear(backbone.features, dim, bias=False))
