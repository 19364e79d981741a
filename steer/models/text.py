"""Prompts as the network reads them: the states of the words in the text tower of emoji-clip."""

import torch
from torch import Tensor

from rewards.towers import Towers


def token_states(towers: Towers, prompts: list[str]) -> dict[str, Tensor]:
    """{"tokens": states after the last layer [p l d], "mask": True where there is a word [p l]}, on the towers' device.

    The text "" stands for no prompt at all.
    """
    model = towers.model
    weight = model.token_embedding.weight
    ids = towers.tokenize(prompts).to(weight.device)
    x = model.token_embedding(ids) + model.positional_embedding[: ids.shape[1]]
    length = ids.shape[1]
    x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
    return {"tokens": model.ln_final(x), "mask": ids != 0}


@torch.no_grad()
def encode_prompts(towers: Towers, prompts: list[str], chunk: int = 512) -> dict[str, Tensor]:
    """`token_states` of any number of prompts, without gradients."""
    parts = [token_states(towers, prompts[i : i + chunk]) for i in range(0, len(prompts), chunk)]
    return {k: torch.cat([p[k] for p in parts]) for k in ("tokens", "mask")}
