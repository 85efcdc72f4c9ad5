"""Randomly initialized models and hand-made tokenizers, small enough to compute everything twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from planners.language.base import Message, Query

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} [turn] {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
WORDS = ("[pad]", "[unk]", "[end]", "[turn]", "system", "user", "assistant", *(f"w{number}" for number in range(33)))


def word_tokenizer(template: str | None = TEMPLATE, **options: Any) -> Any:
    """One token a word; [turn] closes an answer and [end] a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[unk]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    given = {"unk_token": "[unk]", "eos_token": "[end]", "additional_special_tokens": ["[turn]"], **options}
    return PreTrainedTokenizerFast(tokenizer_object=inner, chat_template=template, **given)


def byte_tokenizer(template: str) -> Any:
    """Byte-pair encoding with the space at the start of a word, as GPT-2 and Llama 3 have it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|end|>", "<|start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(["move north move south stay interact north south"] * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, chat_template=template, eos_token="<|end|>")


def small_model(kind: str = "llama", seed: int = 0, words: int = len(WORDS), context: int = 128) -> Any:
    """A model with opinions: weights are larger than usual, so that its distributions are far from uniform."""
    import transformers

    config_type, model_type = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    }[kind]
    config = config_type(
        vocab_size=words,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=0.15,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=None,
    )
    torch.manual_seed(seed)
    return model_type(config)


def chat(length: int, first: int = 0) -> tuple[Message, ...]:
    """A message of so many words."""
    return (Message("user", " ".join(f"w{(first + 7 * place) % 33}" for place in range(length))),)


def query(length: int = 5, first: int = 0, **options: Any) -> Query:
    """A query with a message of so many words."""
    return Query(chat(length, first), **options)


def log_probs_alone(model: Any, prompt: Sequence[int], path: Sequence[int]) -> list[float]:
    """Log-probabilities of the tokens of a path, computed with neither batch, padding nor cache."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[*prompt, *path]]), use_cache=False).logits[0]
    log_probs = logits.log_softmax(-1)
    return [float(log_probs[len(prompt) + place - 1, token]) for place, token in enumerate(path)]
