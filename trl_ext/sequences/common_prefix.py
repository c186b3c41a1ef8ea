"""What sequences begin with together."""


def common_length(sequences: list[list[int]]) -> int:
    """How many tokens all begin with; the first and the last in sorted order differ where any two do.

    >>> common_length([[1, 2, 3], [1, 2], [1, 2, 4]])
    2
    """
    first, last = min(sequences), max(sequences)
    pairs = enumerate(zip(first, last, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(last)))
