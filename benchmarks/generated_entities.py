"""Write generated sentences with entities: a check of token classification where no corpus is.

    python benchmarks/generated_entities.py FOLDER

Sentences are templates filled with names. Validation has other templates and other names than
training, so that neither can be learned by heart. A third of the surnames are also places
(Washington, Lincoln, ...), in both parts, so that the context has to decide. It is no natural text:
a score on it says that a model has learned this grammar, and no more.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path

ROWS = {"train": 2000, "validation": 500}
FIRST = {
    "train": "Anna Boris Clara David Elena Felix Grace Hugo Irene Jonas Karin Louis Maria Nils",
    "validation": "Olga Peter Quinn Rosa Simon Tanja Umberto Vera Walter Xenia Yusuf Zoe",
}
SURNAMES = {
    "train": "Meyer Novak Rossi Tanaka Okafor Silva Dubois Larsen Kowalski Haddad",
    "validation": "Petrov Garcia Nguyen Fischer Moreau Eriksson Costa Yilmaz",
}
BOTH = {
    "train": "Washington Lincoln Houston Jordan Sydney",
    "validation": "Austin Chester Florence Preston",
}
PLACES = {
    "train": "Berlin Oslo Nairobi Lima Kyoto Prague Cairo Quito Dublin Hanoi",
    "validation": "Lisbon Accra Seoul Tallinn Bogota Zagreb Tunis Perth",
}
FIRMS = {
    "train": "Nordwind Altaris Bluestone Quantica Veloce Terranova",
    "validation": "Helvion Marisol Greenfield Octavia Solaris",
}
KINDS = {"train": ["Group", "Bank", "Industries"], "validation": ["Holdings", "Airlines", "Labs"]}
TEMPLATES = {
    "train": [
        "PER said on Monday that ORG would open an office in LOC .",
        "Shares of ORG fell after PER left the board .",
        "In LOC , PER met the head of ORG .",
        "The mayor of LOC thanked PER for her work .",
        "ORG hired PER last year .",
        "Rain is expected in LOC and LOC tomorrow .",
        "PER and PER won the match in LOC .",
        "The price of oil rose by two percent on Friday .",
        "ORG , based in LOC , reported a loss .",
        "A spokesman for ORG declined to comment .",
    ],
    "validation": [
        "PER moved from LOC to LOC in spring .",
        "The new chief of ORG is PER .",
        "According to PER , talks with ORG have failed .",
        "Two trains collided near LOC , police said .",
        "Investors trust ORG more than ORG .",
        "PER , who grew up in LOC , sold the house to ORG .",
        "Exports grew for the third month in a row .",
    ],
}

Entity = tuple[str, list[str]]


def person(draw: random.Random, part: str) -> list[str]:
    """Return a name: of two words, or a surname alone."""
    surnames = SURNAMES[part].split() + BOTH[part].split()
    first = [draw.choice(FIRST[part].split())] if draw.random() < 0.6 else []
    return [*first, draw.choice(surnames)]


def place(draw: random.Random, part: str) -> list[str]:
    """Return a place, now and then with North or South before it."""
    name = draw.choice(PLACES[part].split() + BOTH[part].split())
    return [draw.choice(["North", "South"]), name] if draw.random() < 0.2 else [name]


def firm(draw: random.Random, part: str) -> list[str]:
    """Return a firm, whose name is made up, and may be a place's or a person's too."""
    name = draw.choice(FIRMS[part].split() + BOTH[part].split())
    return [name, draw.choice(KINDS[part])]


MAKERS = {"PER": person, "LOC": place, "ORG": firm}


def sentence(draw: random.Random, part: str) -> list[tuple[str, str]]:
    """Return the words of a sentence with their tags in iob2."""
    tagged = []
    for word in draw.choice(TEMPLATES[part]).split():
        maker = MAKERS.get(word)
        if maker is None:
            tagged.append((word, "O"))
            continue
        first, *rest = maker(draw, part)
        tagged.append((first, f"B-{word}"))
        tagged += [(name, f"I-{word}") for name in rest]
    return tagged


def main(arguments: Sequence[str]) -> None:
    """Write train.conll and validation.conll into the folder that the arguments name."""
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (part, rows) in enumerate(ROWS.items()):
        draw = random.Random(seed)
        lines: list[str] = []
        for _ in range(rows):
            lines += [f"{word} {tag}" for word, tag in sentence(draw, part)]
            lines.append("")
        (folder / f"{part}.conll").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
