"""Answers word by word: how they are chosen, heard while they grow, held to a schema, and cut short.

Shape letters: B conversations, L tokens so far, V words of the vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from foveal.errors import BadInput

if TYPE_CHECKING:
    from PIL.Image import Image

    from foveal.vlm_prompts import Prompts, Turns

Heard = Callable[[str], bool]  # is told what has been said so far, and answers whether it should go on


@dataclass(frozen=True, slots=True)
class Style:
    """How answers are chosen; conversations of one style are answered together.

    Args:
        temperature: 0 takes the likeliest token each time.
        top_p: of the likeliest tokens, those that together reach this probability are drawn from.
        seed: of the drawing; None draws anew each time.
        schema: JSON schema, as text, that the answer follows (arXiv 2307.09702 is the idea).
    """

    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    schema: str | None = None


GREEDY = Style()


@dataclass(frozen=True, slots=True)
class Asking:
    """A question about an upright RGB image, after earlier turns; `heard` hears the answer grow, `stops` end it."""

    image: Image
    question: str
    history: Turns = ()
    heard: Heard | None = None
    stops: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer; `whole` unless it was cut at the most tokens."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    whole: bool


@runtime_checkable
class Converses(Protocol):
    """A vision-language model that holds conversations."""

    def generate(self, asked: Sequence[Asking], style: Style = ...) -> list[Reply]:
        """The answer to each."""
        ...


class Listening(StoppingCriteria):
    """Tells each conversation what has been said, and ends those whose listener is gone or that said a stop word."""

    def __init__(self, asked: Sequence[Asking], prompts: Prompts, given: int) -> None:
        self.asked, self.prompts, self.given = asked, prompts, given
        self.said = [""] * len(asked)
        self.done = [False] * len(asked)

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        """(B, L) -> (B,): who has ended."""
        for row, one in enumerate(self.asked):
            if not self.done[row]:
                said, self.done[row] = cut(self.prompts.spoken(input_ids[row, self.given :].tolist()), one.stops)
                said = surely(said, one.stops)
                if one.heard is not None and said != self.said[row]:
                    self.done[row] = not one.heard(said) or self.done[row]
                self.said[row] = said
        return torch.tensor(self.done, device=input_ids.device)


def cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before the first of the stop words, and whether there was one."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return (text[: min(places)].rstrip(), True) if places else (text, False)


def surely(text: str, stops: Sequence[str]) -> str:
    """The text without an end that may yet become a stop word or is half a character."""
    held = max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
    return text[: len(text) - held].rstrip("\ufffd")


class Following(LogitsProcessor):
    """Lets only those tokens through that a JSON schema allows next.

    Args:
        words: the model's tokens, see `words_of`.
        given: tokens before the answer.

    Raises:
        BadInput: the schema is none, or asks for what cannot be followed.
    """

    def __init__(self, schema: str, words: Any, given: int) -> None:
        from llguidance import LLMatcher

        self._made = lambda: LLMatcher(words, grammar, log_level=0)
        try:
            # Without blanks between tokens, or a model that has not learnt JSON writes nothing else.
            grammar = LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_flexible": False})
            said = LLMatcher.validate_grammar(grammar, words)
        except ValueError as error:
            said = str(error)
        if said:
            raise BadInput("the JSON schema cannot be followed", received=said.splitlines()[0][:200])
        self.given, self._rows = given, list[Any]()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        """(B, L), (B, V) -> (B, V)"""
        if not self._rows:
            self._rows = [self._made() for _ in range(len(input_ids))]
        elif input_ids.shape[1] > self.given:
            for matcher, token in zip(self._rows, input_ids[:, -1].tolist(), strict=True):
                if not matcher.is_stopped():
                    matcher.consume_token(token)
        allowed = np.stack([np.frombuffer(matcher.compute_logit_bias(), np.uint8) > 0 for matcher in self._rows])
        mask = torch.zeros_like(scores, dtype=torch.bool)
        mask[:, : allowed.shape[1]] = torch.from_numpy(allowed[:, : scores.shape[1]]).to(scores.device)
        return scores.masked_fill(~mask, float("-inf"))


def words_of(tokenizer: Any, stops: Sequence[int], width: int) -> Any:
    """A tokenizer's V = `width` tokens as grammars read them; takes a second."""
    from llguidance.hf import from_tokenizer

    return from_tokenizer(tokenizer, n_vocab=width, eos_token=list(stops))


def anything() -> str:
    """The schema of any JSON object."""
    return json.dumps({"type": "object"})
