"""Prompts of very different lengths, made of English sentences."""

from __future__ import annotations

SENTENCES = (
    "The cathedral of Florence has a dome that nobody knew how to build when its walls were already standing.",
    "Filippo Brunelleschi proposed two shells, one inside the other, with a herringbone pattern of bricks between stone ribs.",
    "He refused to show his plans, and instead challenged the committee to stand an egg upright on a slab of marble.",
    "Each ring of the masonry carried itself before the next was laid, so that no timber centering was needed.",
    "def area(radius: float) -> float:\n    return 3.14159 * radius ** 2\n",
    "In 1436 the pope consecrated the building; the lantern on its top was finished after the architect had died.",
    "Les ouvriers montaient chaque matin plus de quatre cents marches, et leur vin était coupé d'eau.",
    "A crane with a hoist that an ox could turn in one direction lifted 1,700 pounds at a time, forwards and in reverse!",
)


def text_of(num_sentences: int, first: int = 0) -> str:
    """That many sentences, numbered, starting at another place for every `first`."""
    chosen = (SENTENCES[(first + i) % len(SENTENCES)] for i in range(num_sentences))
    return " ".join(f"({first + i}) {sentence}" for i, sentence in enumerate(chosen))
