"""The loads of PPO's benchmarks: models with random weights, prompts, and how texts end."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

VOCABULARY = 2048
PAD, EOS = 0, 1
PROMPT_TOKENS = 24
STEPS = 96
"""Longest response."""

MEAN_LENGTH, LENGTH_SPREAD = 30, 0.33
"""Ragged responses are log-normal: mean, and standard deviation of the logarithm; as E2E's."""


@dataclass(frozen=True)
class Load:
    """What one update has to do."""

    name: str
    max_new_tokens: int
    ragged: bool
    episodes: int = 64
    epochs: int = 4
    minibatches: int = 4

    @property
    def optimizer_steps(self) -> int:
        """Of one update."""
        return self.epochs * self.minibatches


LOADS = {
    load.name: load
    for load in (Load("full length", 48, ragged=False), Load("ragged", STEPS, ragged=True))
}


SPECIAL: dict[str, Any] = {
    "tie_word_embeddings": False,
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "bos_token_id": None,
}


def llama_config(**shape: int) -> Any:
    """4.5 million parameters, input and output embedding apart; or another shape."""
    from transformers import LlamaConfig

    small = {
        "vocab_size": VOCABULARY,
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 128,
    }
    return LlamaConfig(**small | shape, **SPECIAL)


def large_llama_config() -> Any:
    """0.5 billion parameters."""
    return llama_config(
        vocab_size=32_000,
        hidden_size=1280,
        intermediate_size=3456,
        num_hidden_layers=22,
        num_attention_heads=20,
        num_key_value_heads=20,
    )


def gpt2_config() -> Any:
    """124 million parameters, and 39 million of an output layer of its own."""
    from transformers import GPT2Config

    return GPT2Config(**SPECIAL)


MODELS: dict[str, Callable[[], Any]] = {
    "Llama 4.5 M": llama_config,
    "GPT-2 124 M": gpt2_config,
    "Llama 0.5 B": large_llama_config,
}


def language_model(config: Any, *, ragged: bool) -> Any:
    """Random weights, but for a clock: see `wind_up`."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(config).eval()
    wind_up(lm, ending_rates() if ragged else torch.zeros(STEPS))
    return lm


def reward_classifier(config: Any) -> Any:
    """As large as the policy, with a score instead of logits."""
    from transformers import AutoModelForSequenceClassification

    config.num_labels = 1
    return AutoModelForSequenceClassification.from_config(config).eval()


def ending_rates() -> torch.Tensor:
    """(STEPS,): the probability that a response that has come so far ends with this token."""
    middle = math.log(MEAN_LENGTH) - LENGTH_SPREAD**2 / 2
    ends = torch.arange(1, STEPS + 1).log().sub(middle).div(LENGTH_SPREAD)
    reached = torch.special.ndtr(ends.double())
    before = torch.cat([torch.zeros(1, dtype=torch.float64), reached[:-1]])
    rates: torch.Tensor = (reached - before) / (1 - before)
    return rates.clamp(max=0.99)


@torch.no_grad()
def wind_up(lm: Any, rates: torch.Tensor) -> None:
    """Let responses end as `rates` says, in any family: token i stands for step i mod STEPS.

    The embedding says the step, the output layer prefers tokens of the next one, and EOS as often
    as `rates` says there, which is solved for with the states of texts. PAD never comes. A prompt's
    last token must stand for step 0.
    """
    vocabulary = lm.config.vocab_size
    step = torch.arange(vocabulary) % STEPS
    embedding, head = lm.get_input_embeddings().weight, lm.get_output_embeddings().weight
    assert embedding is not head, "the clock needs a config with tie_word_embeddings=False"
    # Far above what the layers add to it.
    mark = 5 * lm.config.num_hidden_layers * math.sqrt(lm.config.hidden_size / 256)
    embedding[:, :STEPS] = mark * torch.nn.functional.one_hot(step, STEPS)
    texts = STEPS * torch.randint(1, vocabulary // STEPS, (8, STEPS)) + torch.arange(STEPS)
    states = lm(input_ids=texts, output_hidden_states=True).hidden_states[-1].mean(0)
    seen = states[:, :STEPS]  # how large the mark of each step still is at the end, and the others
    likely = 12.0
    head[:, :STEPS] = torch.nn.functional.one_hot((step - 1) % STEPS, STEPS) * likely / seen.diag()
    head[[EOS, PAD]] = 0.0
    of_a_step = vocabulary / STEPS
    ending = likely + (of_a_step * rates / (1 - rates)).log().clamp(min=-40).float()
    head[EOS, :STEPS] = torch.linalg.solve(seen, ending)
    head[PAD, :STEPS] = torch.linalg.solve(seen, torch.full_like(ending, likely - 40))


def prompts(count: int, *, seed: int = 0) -> list[list[int]]:
    """Random prompts of `PROMPT_TOKENS` tokens, the last of which starts the clock."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, VOCABULARY, (count, PROMPT_TOKENS), generator=generator)
    ids[:, -1] = STEPS * torch.randint(1, VOCABULARY // STEPS, (count,), generator=generator)
    return [[int(i) for i in row] for row in ids]
