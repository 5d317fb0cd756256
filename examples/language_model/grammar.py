"""Text from a small grammar: English-like sentences whose verbs agree with distant subjects."""

from __future__ import annotations

import random

import torch
from torch import Tensor

ALPHABET = "\n abcdefghijklmnopqrstuvwxyz,."
_INDEX = {character: index for index, character in enumerate(ALPHABET)}

_NOUNS = ["cat", "dog", "bird", "farmer", "child", "teacher", "river", "stone", "tree", "horse"]
_PLURALS = {"child": "children"}
_VERBS = ["sees", "follows", "helps", "finds", "hears", "likes", "moves", "feeds"]
_IDLE_VERBS = ["sleeps", "waits", "sings", "falls", "runs"]
_ADJECTIVES = ["old", "small", "quiet", "green", "slow", "bright"]
_PLACES = ["near", "behind", "under", "above"]


def _noun_phrase(source: random.Random, plural: bool, depth: int) -> str:
    noun = source.choice(_NOUNS)
    words = ["these" if plural else "this" if source.random() < 0.3 else "the"]
    if source.random() < 0.4:
        words.append(source.choice(_ADJECTIVES))
    words.append(_PLURALS.get(noun, noun + "s") if plural else noun)
    if depth > 0 and source.random() < 0.35:
        if source.random() < 0.5:
            other = source.random() < 0.5
            words += ["that", _noun_phrase(source, other, depth - 1), _verb(source, _VERBS, other)]
        else:
            words += [source.choice(_PLACES), _noun_phrase(source, source.random() < 0.5, 0)]
    return " ".join(words)


def _verb(source: random.Random, verbs: list[str], plural: bool) -> str:
    verb = source.choice(verbs)
    return verb.removesuffix("s") if plural else verb


def _clause(source: random.Random) -> str:
    plural = source.random() < 0.5
    subject = _noun_phrase(source, plural, 2)
    if source.random() < 0.4:
        return f"{subject} {_verb(source, _IDLE_VERBS, plural)}"
    return (
        f"{subject} {_verb(source, _VERBS, plural)} "
        f"{_noun_phrase(source, source.random() < 0.5, 1)}"
    )


def text(characters: int, seed: int) -> Tensor:
    """Indices into ALPHABET, int64 [characters]; the same for the same seed."""
    source = random.Random(seed)
    parts: list[str] = []
    length = 0
    while length < characters:
        sentence = _clause(source)
        if source.random() < 0.25:
            sentence += ", and " + _clause(source)
        parts.append(sentence + (".\n" if source.random() < 0.2 else ". "))
        length += len(parts[-1])
    return torch.tensor([_INDEX[c] for c in "".join(parts)[:characters]])
