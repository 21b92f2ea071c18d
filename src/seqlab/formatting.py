"""Numbers in words, for all rooms."""


def counted(number: int, thing: str) -> str:
    """``1 seed``, ``2 seeds``, ``10,000 seeds``."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"
