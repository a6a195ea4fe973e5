"""Log-probabilities (nats) and entropies of tokens, from logits."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

SUPPRESSED_LOGIT = -1e9
"""Logit of a token that can never be sampled: finite, so that p·log p stays 0 and not NaN."""


def prepare_logits(
    logits: Float[Tensor, "*batch V"], *, temperature: float, suppressed_id: int | None
) -> Float[Tensor, "*batch V"]:
    """fp32 logits divided by the temperature, with one token (PAD) taken out of the distribution.

    The sampler, the reference and the update all go through here, so that no logprob can miss the
    temperature or give PAD a share.
    """
    logits = logits.float() / temperature
    if suppressed_id is None:
        return logits
    index = torch.tensor([suppressed_id], device=logits.device)
    return logits.index_fill(-1, index, SUPPRESSED_LOGIT)


def token_logprobs(
    logits: Float[Tensor, "B R V"], token_ids: Int[Tensor, "B R"]
) -> Float[Tensor, "B R"]:
    """log p(token) = logit(token) − logsumexp(logits), for prepared logits.

    Logits at index t must be those that predict token t (the shift is the caller's).
    """
    chosen = logits.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)
    return chosen - logits.logsumexp(-1)


def token_entropy(logits: Float[Tensor, "B R V"]) -> Float[Tensor, "B R"]:
    """Entropy of each next-token distribution, −Σ p log p, in nats, for prepared logits."""
    return logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1)
