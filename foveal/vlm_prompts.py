"""How a family of vision-language models takes an image and words: what it is asked, and what it should have answered.

Shape letters: B images, L tokens of a padded batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from foveal.errors import BadInput

if TYPE_CHECKING:
    from PIL.Image import Image

IGNORED = -100  # a target that no loss counts
Turns = Sequence[tuple[str, str]]  # question, answer


class Prompts(ABC):
    """Texts and tensors of one processor.

    `conversational`: whether a prompt may hold earlier turns.
    """

    conversational = True

    def __init__(self, processor: Any, model: Any) -> None:
        self.processor, self.tokenizer = processor, processor.tokenizer
        stops: Any = model.generation_config.eos_token_id
        listed: list[int] = [stops] if isinstance(stops, int) else list(stops or ())
        self.stops = {*listed, self.tokenizer.eos_token_id}

    @abstractmethod
    def ask(self, history: Turns, question: str) -> str:
        """The text that ends where the answer to `question` begins."""

    def inputs(
        self, images: Sequence[Image], texts: Sequence[str], *, side: Literal["left", "right"] = "right", **options: Any
    ) -> dict[str, Tensor]:
        """Upright RGB images, each with its text of `ask` -> what the model takes, padded at one side, on the CPU."""
        begin = self.tokenizer.bos_token
        given = begin is not None and texts[0].startswith(begin)  # most templates write it themselves
        batch: Any = self.processor(
            images=list(images),
            text=list(texts),
            padding=True,
            padding_side=side,
            return_tensors="pt",
            **({"add_special_tokens": False} if given else {}),
            **options,
        )
        return {name: value for name, value in batch.items() if name != "labels"}

    @abstractmethod
    def lesson(self, images: Sequence[Image], dialogues: Sequence[Turns]) -> tuple[dict[str, Tensor], Tensor]:
        """Images with their dialogues -> the model's inputs, and the token (B, L) each output should predict.

        Targets are `IGNORED` wherever nothing is answered.

        Raises:
            BadInput: the chat template does not let an answer be told from its prompt.
        """

    @abstractmethod
    def answer_tokens(self, turns: Turns) -> int:
        """How many tokens of a dialogue `lesson` asks to be predicted."""

    def spoken(self, ids: Sequence[int]) -> str:
        """Generated ids up to the first stop, as text; tokens that write places stay in it."""
        kept: list[int] = []
        for token in ids:
            if token in self.stops and kept:
                break
            if token not in self.stops and token not in (self.tokenizer.pad_token_id, self.tokenizer.bos_token_id):
                kept.append(token)
        return self.tokenizer.decode(kept, skip_special_tokens=False).strip()


class ChatPrompts(Prompts):
    """Models with a chat template: the image stands in the first question."""

    def __init__(self, processor: Any, model: Any) -> None:
        super().__init__(processor, model)
        if not getattr(processor, "chat_template", None):
            raise BadInput(
                "the model has no chat template, so nobody knows how to ask it",
                expected="chat_template.jinja beside its processor",
                remedy="Take the checkpoint's instruct version, or copy its template there.",
            )

    def ask(self, history: Turns, question: str) -> str:
        return self._render([*history, (question, None)])

    def lesson(self, images: Sequence[Image], dialogues: Sequence[Turns]) -> tuple[dict[str, Tensor], Tensor]:
        marked = [self.marked(turns) for turns in dialogues]
        inputs = self.inputs(images, [text for text, _ in marked])
        ids, attended = inputs["input_ids"], inputs["attention_mask"].bool()
        targets = torch.full_like(ids, IGNORED)
        for row, (_, answered) in enumerate(marked):
            # Before the first answer an image's placeholder has grown to many tokens; from there on nothing moved.
            first = answered.index(True)
            tail = torch.tensor(answered[first:])
            end = int(attended[row].nonzero()[-1]) + 1
            span = slice(end - len(tail), end)
            targets[row, span] = torch.where(tail, ids[row, span], IGNORED)
        return inputs, torch.cat([targets[:, 1:], torch.full_like(targets[:, :1], IGNORED)], dim=1)

    def packed(
        self, images: Sequence[Image], dialogues: Sequence[Sequence[Turns]], image_token: int
    ) -> tuple[dict[str, Tensor], Tensor]:
        """As `lesson`, for images with several dialogues each: the image is read once and no dialogue sees another.

        Each dialogue is answered as it would be alone. For models whose positions count tokens one by one.
        """
        marked = [[self.marked(turns) for turns in group] for group in dialogues]
        inputs = self.inputs(images, [group[0][0] for group in marked])
        rows: list[tuple[list[int], list[tuple[list[int], list[bool]]]]] = []
        for ids, attended, group in zip(inputs.pop("input_ids"), inputs["attention_mask"].bool(), marked, strict=True):
            plain = [self._tokens(text) for text, _ in group]
            start = plain[0].index(image_token) + 1  # here the image is one token; in `ids` it has grown
            if any(tokens[:start] != plain[0][:start] for tokens in plain):
                raise BadInput("the chat template puts words before the image", remedy="Set pack=1.")
            whole = ids[attended].tolist()
            picture = whole[: len(whole) - (len(plain[0]) - start)]
            rows.append((picture, [(t[start:], a[start:]) for t, (_, a) in zip(plain, group, strict=True)]))
        length = max(len(picture) + sum(len(tokens) for tokens, _ in tails) for picture, tails in rows)
        packed = torch.full((len(rows), length), self.tokenizer.pad_token_id)
        positions, targets = torch.zeros_like(packed), torch.full_like(packed, IGNORED)
        owner = torch.full_like(packed, -1)  # dialogue that a token belongs to; 0 is the image
        for b, (picture, tails) in enumerate(rows):
            at = len(picture)
            packed[b, :at], positions[b, :at], owner[b, :at] = torch.tensor(picture), torch.arange(at), 0
            for number, (tokens, answered) in enumerate(tails, start=1):
                span = slice(at, at + len(tokens))
                packed[b, span], owner[b, span] = torch.tensor(tokens), number
                positions[b, span] = len(picture) + torch.arange(len(tokens))
                # What each token predicts is the one after it; the first of a dialogue is never an answer.
                said = torch.tensor(answered[1:])
                targets[b, at : at + len(tokens) - 1] = torch.where(said, torch.tensor(tokens[1:]), IGNORED)
                at += len(tokens)
        mask = side_by_side(owner)
        return {**inputs, "input_ids": packed, "position_ids": positions, "attention_mask": mask}, targets

    def answer_tokens(self, turns: Turns) -> int:
        return sum(self.marked(turns)[1])

    def marked(self, turns: Turns) -> tuple[str, list[bool]]:
        """The whole text, and for each of its tokens (the image being one) whether the model is to say it.

        Raises:
            BadInput: an earlier part of the conversation reads otherwise than in the whole.
        """
        whole = self._render(turns)
        ids = self._tokens(whole)
        spans = [self._span(whole, ids, turns, i) for i in range(len(turns))]
        first, end = spans[-1]
        if not self.stops.intersection(ids[first:end]):  # LLaVA's template never says when an answer is over
            whole = whole + self.tokenizer.eos_token
            ids = self._tokens(whole)
            spans[-1] = (first, len(ids))
        answered = [False] * len(ids)
        for first, end in spans:
            stop = next((i for i in range(first, end) if ids[i] in self.stops), end - 1)
            answered[first : stop + 1] = [True] * (stop + 1 - first)
        return whole, answered

    def _span(self, whole: str, ids: list[int], turns: Turns, i: int) -> tuple[int, int]:
        """First and last-plus-one token of answer `i`."""
        question, answer = turns[i]
        prompt, until = self.ask(turns[:i], question), self._render(turns[: i + 1])
        before, through = self._tokens(prompt), self._tokens(until)
        if not (
            whole.startswith(prompt)
            and whole.startswith(until)
            and ids[: len(before)] == before
            and ids[: len(through)] == through
            and len(before) < len(through)
        ):
            raise BadInput(
                f"the chat template does not let the answer {answer[:40]!r} be told from its prompt",
                expected="the prompt to be how the whole conversation begins",
                received=f"{prompt[-60:]!r} before {whole[-60:]!r}",
                remedy="Give each question a dialogue of its own, or mend the template.",
            )
        return len(before), len(through)

    def _tokens(self, text: str) -> list[int]:
        begin = self.tokenizer.bos_token
        return self.tokenizer(text, add_special_tokens=not (begin and text.startswith(begin)))["input_ids"]

    def _render(self, turns: Sequence[tuple[str, str | None]]) -> str:
        messages: list[dict[str, Any]] = []
        for question, answer in turns:
            image = [] if messages else [{"type": "image"}]
            messages.append({"role": "user", "content": [*image, {"type": "text", "text": question}]})
            if answer is not None:
                messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        return self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=turns[-1][1] is None)


class PaliGemmaPrompts(Prompts):
    """PaliGemma (arXiv 2407.07726, 2412.03555): no chat, a prefix that is read both ways and a suffix to say."""

    conversational = False

    def ask(self, history: Turns, question: str) -> str:
        _refuse_history(history)
        return self.processor.image_token + question

    def lesson(self, images: Sequence[Image], dialogues: Sequence[Turns]) -> tuple[dict[str, Tensor], Tensor]:
        prompts = [self.ask(turns[:-1], turns[-1][0]) for turns in dialogues]
        inputs = self.inputs(images, prompts, suffix=[turns[-1][1] for turns in dialogues])
        said = (inputs["token_type_ids"] == 1) & inputs["attention_mask"].bool()
        targets = torch.where(said, inputs["input_ids"], IGNORED)
        return inputs, torch.cat([targets[:, 1:], torch.full_like(targets[:, :1], IGNORED)], dim=1)

    def answer_tokens(self, turns: Turns) -> int:
        return len(self.tokenizer(turns[-1][1], add_special_tokens=False)["input_ids"]) + 1  # and the end


class Florence2Prompts(Prompts):
    """Florence-2 (arXiv 2311.06242): an encoder reads image and task prompt, a decoder answers."""

    conversational = False

    def __init__(self, processor: Any, model: Any) -> None:
        super().__init__(processor, model)
        self._start = int(model.config.get_text_config().decoder_start_token_id)

    def ask(self, history: Turns, question: str) -> str:
        _refuse_history(history)
        return question

    def lesson(self, images: Sequence[Image], dialogues: Sequence[Turns]) -> tuple[dict[str, Tensor], Tensor]:
        inputs = self.inputs(images, [self.ask(turns[:-1], turns[-1][0]) for turns in dialogues])
        begin, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        rows: list[Tensor] = []
        for turns in dialogues:
            said = self.tokenizer(turns[-1][1], add_special_tokens=False)["input_ids"]
            rows.append(torch.tensor([begin, *said, end]))
        targets = pad_sequence(rows, batch_first=True, padding_value=IGNORED)
        fed = torch.cat([torch.full_like(targets[:, :1], self._start), targets[:, :-1]], dim=1)
        fed = fed.masked_fill(fed == IGNORED, self.tokenizer.pad_token_id)
        return {**inputs, "decoder_input_ids": fed}, targets

    def answer_tokens(self, turns: Turns) -> int:
        return len(self.tokenizer(turns[-1][1], add_special_tokens=False)["input_ids"]) + 2  # begin and end


def side_by_side(owner: Tensor) -> Tensor:
    """The attention mask (B, 1, L, L) under which each dialogue sees the image and itself alone, in causal order.

    Args:
        owner: (B, L) which dialogue a token belongs to; 0 is the image, -1 padding, which sees itself.
    """
    length = owner.shape[1]
    same = (owner[:, :, None] == owner[:, None, :]) | (owner[:, None, :] == 0)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    mask = (causal & same & (owner[:, None, :] >= 0)) | torch.eye(length, dtype=torch.bool)
    return mask[:, None]


def _refuse_history(history: Turns) -> None:
    if history:
        raise BadInput(
            "this family holds no conversations", expected="one question", received=f"{len(history)} turns before it"
        )
