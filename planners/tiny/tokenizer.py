"""A tokenizer for prompts that are made of few lines, which writes most of them as one token each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

END, ANSWER = "</s>", "<answer>"
LINE_END = r"\n(?!- )"  # lists stay together
LONGEST = 1000  # bytes of a token
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %}{{ '<answer>' + message.content + '</s>' }}"
    "{% else %}{{ message.content + '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<answer>' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """Byte pairs (Sennrich et al., ACL 2016, arXiv 1508.07909) that merge within lines, never across their ends.

    Texts are in bytes at last, so that any can be written. A line that is met often becomes one token, whatever its
    length; a prompt of a thousand letters is some thirty tokens.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer: Any = Tokenizer(models.BPE())
    lines = pre_tokenizers.Split(Regex(LINE_END), "merged_with_previous")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [lines, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[END, ANSWER],
        show_progress=False,
        max_token_length=LONGEST,
    )
    tokenizer.train_from_iterator(texts, trainer)
    whole = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=END, additional_special_tokens=[ANSWER]
    )
    whole.chat_template = TEMPLATE
    return whole
