"""What is said of an emoji: sentences made of its name in Unicode's CLDR, its keywords and its category."""

from __future__ import annotations

PEOPLE = {"man", "woman", "person", "boy", "girl", "adult", "child"}
#: Details that follow "with"; what is none of these, of the people or a way to face names a thing: flag, keycap.
HAIR = {
    "red hair": "red hair",
    "curly hair": "curly hair",
    "white hair": "white hair",
    "blond hair": "blond hair",
    "bald": "bald head",
    "beard": "beard",
}
_KEYWORDS = 5


def captions(label: str, tags: list[str], category: str) -> tuple[str, ...]:
    """The captions of an emoji.

    label: its name, as "man cook: dark skin tone"; tags: its keywords; category: as "person-role".
    """
    name = phrase(label)
    known = set(name.lower().split())
    new = [tag for tag in dict.fromkeys(tags) if tag.lower() not in known][:_KEYWORDS]
    said = [name, f"{name}: {', '.join(new)}" if new else name, f"{name}, {category.replace('-', ' ')}"]
    return tuple(dict.fromkeys(said))


def phrase(label: str) -> str:
    """A name as one would say it: "man cook with dark skin"; "family of man, woman and boy"; "flag of France"."""
    base, _, rest = label.partition(": ")
    details = rest.split(", ") if rest else []
    if base == "flag":
        return f"flag of {rest}"
    people = [detail for detail in details if detail in PEOPLE]
    skins = [detail.removesuffix(" tone") for detail in details if detail.endswith("skin tone")]
    hair = [HAIR[detail] for detail in details if detail in HAIR]
    facing = [detail for detail in details if detail.startswith("facing ")]
    things = [detail for detail in details if detail not in {*people, *HAIR, *facing} and "skin tone" not in detail]
    words = [base, *things, *facing]
    if people:
        words += ["of", _enumerate(people)]
    if skins or hair:
        words += ["with", _enumerate([*_merged(skins), *hair])]
    return " ".join(words)


def _merged(skins: list[str]) -> list[str]:
    """Two people's skins: "light skin and dark skin" becomes "light and dark skin"."""
    if len(skins) < 2:
        return skins
    return [" and ".join(skin.removesuffix(" skin") for skin in skins) + " skin"]


def _enumerate(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
