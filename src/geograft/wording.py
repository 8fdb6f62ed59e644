"""Numbers with their nouns."""


def counted(count: int, noun: str) -> str:
    """Return a number and its noun.

    >>> counted(1, "tile"), counted(1150, "tile")
    ('1 tile', '1,150 tiles')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
