"""Language models of Hugging Face transformers, run on this machine."""

from __future__ import annotations

import copy
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch

from envs.core import InputError
from planners.language.backends.chat import Chat, Choices
from planners.language.backends.decoding import Draw, generator_of
from planners.language.backends.loading import load
from planners.language.backends.scoring import batches, pad_left, read, read_on
from planners.language.base import Answer, Completion, Message, ModelError, Query, Scores


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A query in tokens. number: its place among those asked. longest: how many tokens a completion may have.

    paths: of its choices, the tokens to score.
    """

    number: int
    query: Query
    prompt: list[int]
    choices: Choices | None
    longest: int
    paths: tuple[tuple[int, ...], ...]


class Local:
    """A causal language model and its tokenizer, asked through its chat template.

    name: a folder, or a name of the Hugging Face hub, there at `revision`. gguf: the GGUF file in it, where weights are
    in one. dtype: float32, bfloat16 or float16. batch: the most rows that are computed at once; smaller takes less
    memory. A completion depends on its query alone, up to rounding: not on the others, the batch or the device.

    Where a query has choices, completions end with the one token that `score` ends them with, so that they are drawn
    with the probabilities of `Scores.constrained`; what is written freely stops at any end that the model knows.
    """

    scores = True

    def __init__(
        self,
        name: str,
        *,
        gguf: str | None = None,
        revision: str | None = None,
        dtype: str = "float32",
        device: str = "cpu",
        batch: int = 64,
    ):
        found = load(name, gguf, revision, dtype, device)
        self._set(found.model, found.tokenizer, found.identity, batch)

    @classmethod
    def of(cls, model: Any, tokenizer: Any, identity: str, *, batch: int = 64) -> Local:
        """A model that is in memory already, as it is now; training it further wants another identity.

        It is set to evaluate; parameters are shared, settings of generation are not.
        """
        local = cls.__new__(cls)
        local._set(model, tokenizer, identity, batch)
        return local

    def _set(self, model: Any, tokenizer: Any, identity: str, batch: int) -> None:
        """Take over model and tokenizer."""
        from transformers import GenerationConfig

        if batch < 1:
            raise InputError(f"A batch holds at least one prompt; got batch={batch}.")
        words = model.get_input_embeddings().num_embeddings
        if len(tokenizer) > words:
            raise InputError(
                f"The tokenizer has {len(tokenizer)} words, the model only {words}. Give the tokenizer that the model "
                "was trained with."
            )
        ends = model.generation_config.eos_token_id
        self._chat = Chat(tokenizer, [ends] if isinstance(ends, int) else ends or [])
        # A model's own settings (top_p, penalties of repetition) would change what is drawn; they stay with the caller.
        self._model = copy.copy(model).eval()
        self._model.generation_config = GenerationConfig()
        self._context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf
        self.identity, self.batch = identity, batch

    def complete(self, queries: Sequence[Query]) -> Iterator[tuple[int, Answer]]:
        """Completions. Raises InputError, before any is asked, for a query that the model cannot answer."""
        asked = self._ask(queries)
        for one in asked:
            if one.longest > one.query.max_tokens:
                raise InputError(
                    f"The longest of the choices takes {one.longest} tokens with its end, and max_tokens is "
                    f"{one.query.max_tokens}. Allow as many, or leave the choice out."
                )
        return self._complete(asked)

    def score(self, queries: Sequence[Query]) -> Iterator[tuple[int, Scores]]:
        """Log-probabilities of each query's choices. Raises InputError, before any is asked, where there are none."""
        require_choices(queries)
        return self._score(self._ask(queries))

    def score_deciding(self, queries: Sequence[Query]) -> Iterator[tuple[int, Scores]]:
        """Log-probabilities of each query's choices up to the token after which only one is left, and of no more.

        `Scores.constrained` is the same as of whole choices, `whole` and `per_token` are not. Where first tokens decide
        it takes one reading of the prompt.
        """
        require_choices(queries)
        asked = self._ask(queries)
        return self._score([replace(one, paths=one.choices.deciding) for one in asked if one.choices is not None])

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt, the template's own included."""
        return len(self._chat.prompts([messages])[0])

    def close(self) -> None:
        """Let go of the model; a second call does nothing."""
        self._model = None
        torch.cuda.empty_cache()  # does nothing where CUDA was not used

    def _ask(self, queries: Sequence[Query]) -> list[Asked]:
        """Queries in tokens, those that take longest first: what does not fit into memory fails at once."""
        if self._model is None:
            raise InputError("This language model was closed; make another one to ask further.")
        asked = []
        for number, prompt in enumerate(self._chat.prompts([query.messages for query in queries])):
            query = queries[number]
            choices = self._chat.choices(query.choices) if query.choices else None
            longest = query.max_tokens if choices is None else choices.longest
            self._check_length(len(prompt), longest)
            paths = () if choices is None else choices.tokens
            asked.append(Asked(number, query, prompt, choices, longest, paths))
        return sorted(asked, key=lambda one: (one.longest, len(one.prompt)), reverse=True)

    def _check_length(self, prompt: int, longest: int) -> None:
        """Refuse a prompt that is empty, or leaves no room for its completion."""
        if not prompt:
            raise InputError("The chat template makes nothing of these messages: the prompt has no tokens. Say more.")
        if prompt + longest > self._context:
            raise InputError(
                f"The model reads {self._context} tokens at most, and this prompt has {prompt}, its completion up to "
                f"{longest}. Shorten the prompt, lower max_tokens, or take a model with a longer context."
            )

    def _complete(self, asked: Sequence[Asked]) -> Iterator[tuple[int, Answer]]:
        """Answers, each as soon as its last completion is written."""
        rows = [(one, number) for one in asked for number in range(one.query.n)]
        written: dict[int, list[Completion]] = defaultdict(list)
        seconds: dict[int, float] = defaultdict(float)
        for batch in batches(rows, self.batch):
            began = time.perf_counter()
            completions = self._write(batch)
            share = (time.perf_counter() - began) / len(batch)
            for (one, _), completion in zip(batch, completions):
                written[one.number].append(completion)
                seconds[one.number] += share
                if len(written[one.number]) == one.query.n:
                    parts = tuple(written.pop(one.number))
                    yield one.number, Answer(parts, len(one.prompt), seconds.pop(one.number))

    @torch.inference_mode()
    def _write(self, rows: Sequence[tuple[Asked, int]]) -> list[Completion]:
        """One completion a row; a row is a query and the number of its completion."""
        tokens, attention = pad_left([one.prompt for one, _ in rows], self._model.device)
        draw = Draw(
            generators=[generator_of(one.query, number) for one, number in rows],
            temperatures=[one.query.temperature for one, _ in rows],
            choices=[one.choices for one, _ in rows],
            prompt_length=tokens.shape[1],
            end=self._chat.end,
        )
        output = self._model.generate(
            input_ids=tokens,
            attention_mask=attention,
            logits_processor=[draw],
            do_sample=False,
            max_new_tokens=max(one.longest for one, _ in rows),
            eos_token_id=list(self._chat.ends),
            pad_token_id=self._chat.end,
        )
        written = output[:, tokens.shape[1] :].tolist()
        log_probs = torch.stack(draw.log_probs, 1).tolist()
        return [self._completion(one, *row) for (one, _), *row in zip(rows, written, log_probs)]

    def _completion(self, one: Asked, tokens: Sequence[int], log_probs: Sequence[float]) -> Completion:
        """A completion up to its end, or to where it was cut off, whatever stands in the row behind that."""
        stops = [place for place, token in enumerate(tokens) if token in self._chat.ends]
        length = min([stop + 1 for stop in stops[:1]] + [one.longest])
        path = tuple(tokens[:length])
        text = self._chat.text(path) if one.choices is None else one.choices.texts[one.choices.tokens.index(path)]
        return Completion(text, length, _sound(math.fsum(log_probs[:length])))

    def _score(self, asked: Sequence[Asked]) -> Iterator[tuple[int, Scores]]:
        """Scores, one batch of prompts after the other."""
        for batch in batches(asked, self.batch):
            began = time.perf_counter()
            found = self._read(batch)
            seconds = (time.perf_counter() - began) / len(batch)
            for one, log_probs in zip(batch, found):
                yield one.number, Scores(one.paths, log_probs, len(one.prompt), seconds)

    @torch.inference_mode()
    def _read(self, asked: Sequence[Asked]) -> list[tuple[tuple[float, ...], ...]]:
        """Log-probabilities of each query's choices, by token."""
        reading = read(self._model, [one.prompt for one in asked])
        # Choices that differ in their last token alone are read once.
        last: dict[tuple[int, tuple[int, ...]], list[int]] = defaultdict(list)
        for row, one in enumerate(asked):
            for path in one.paths:
                last[row, path[:-1]].append(path[-1])
        found: dict[tuple[int, tuple[int, ...]], tuple[float, ...]] = {}
        for _, alike in groupby(sorted(last, key=_length), _length):
            for part in batches(list(alike), self.batch):
                rows, prefixes = zip(*part)
                before, following = read_on(self._model, reading, rows, prefixes)
                for number, (row, prefix) in enumerate(part):
                    tokens = last[row, prefix]
                    for token, log_prob in zip(tokens, following[number, tokens].tolist()):
                        found[row, (*prefix, token)] = (*before[number], _sound(log_prob))
        return [tuple(found[row, path] for path in one.paths) for row, one in enumerate(asked)]


def _length(branch: tuple[int, tuple[int, ...]]) -> int:
    """Tokens of a row's prefix."""
    return len(branch[1])


def require_choices(queries: Sequence[Query]) -> None:
    """Raise InputError for a query without choices, of which there is nothing to score."""
    if not all(query.choices for query in queries):
        raise InputError("Scores are of the choices of a query, and one of these has none. Give it choices.")


def _sound(log_prob: float) -> float:
    """The log-probability, unless the model computed none."""
    if math.isnan(log_prob):
        raise ModelError(
            "The language model gave NaN for a log-probability. In float16 numbers overflow early: load it with dtype "
            "bfloat16 or float32. If it was in float32 already, its weights are broken."
        )
    return log_prob
