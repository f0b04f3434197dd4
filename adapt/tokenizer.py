"""A small CLIP tokenizer, trained on the captions at hand and read back offline by open_clip and transformers alike.

`build_tokenizer(sentences, folder, vocab_size=1024, context_length=32) -> int` writes `tokenizer.json` and
`tokenizer_config.json` into `folder` and returns the number of ids, which both text towers take as `vocab_size`.

Ids follow what the text towers of CLIP and OWL rely on: padding is 0, the begin token is the last but one id and the
end token the highest, because both pool the text at the position of the highest id.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from foveal.errors import BadInput

PAD, BEGIN, END = "<|pad|>", "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
# 256 bytes, each also as the last of a word, plus the three special tokens: no text is ever out of vocabulary.
SMALLEST_VOCABULARY = 2 * 256 + 3


def build_tokenizer(sentences: Iterable[str], folder: Path, vocab_size: int = 1024, context_length: int = 32) -> int:
    """Train a byte-level BPE on `sentences` and save it into `folder`; returns the size of the vocabulary it reached.

    The size falls short of `vocab_size` when the sentences hold too few distinct words.

    Raises:
        BadInput: `vocab_size` cannot hold all bytes, or there is no sentence.
    """
    from transformers import CLIPTokenizer

    if vocab_size < SMALLEST_VOCABULARY:
        raise BadInput(
            "the vocabulary is too small", expected=f"at least {SMALLEST_VOCABULARY}", received=str(vocab_size)
        )
    merges = _learn_merges(sentences, vocab_size)
    alphabet = _byte_alphabet()
    words = [*alphabet, *(letter + WORD_END for letter in alphabet), *("".join(pair) for pair in merges)]
    vocabulary = {token: i for i, token in enumerate([PAD, *dict.fromkeys(words), BEGIN, END])}
    tokenizer = CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,  # pyright: ignore[reportArgumentType]
        pad_token=PAD,
        bos_token=BEGIN,
        eos_token=END,
        unk_token=END,
        model_max_length=context_length,
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    return len(vocabulary)


def _byte_alphabet() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def _learn_merges(sentences: Iterable[str], vocab_size: int) -> list[tuple[str, str]]:
    """Merge rules in order of use, learnt with CLIP's own normalisation and word splitting."""
    from tokenizers import Tokenizer, models, trainers
    from transformers import CLIPTokenizer

    corpus = [text for text in sentences if text.strip()]
    if not corpus:
        raise BadInput("no sentence to learn a tokenizer from", expected="at least one")
    backend: Any = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(models.BPE(end_of_word_suffix=WORD_END))
    learner.normalizer, learner.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    alphabet = _byte_alphabet()
    trainer = trainers.BpeTrainer(
        # The trainer counts every letter it meets in both forms, so this bound is exact once all of them are met.
        vocab_size=vocab_size - 3,
        initial_alphabet=alphabet,
        special_tokens=[letter + WORD_END for letter in alphabet],
        end_of_word_suffix=WORD_END,
        min_frequency=2,
        show_progress=False,
    )
    learner.train_from_iterator(corpus, trainer)
    return [(left, right) for left, right in json.loads(learner.to_str())["model"]["merges"]]
