import pytest

from trl_ext.sequences.common_prefix import common_length


@pytest.mark.parametrize(
    ("sequences", "length"),
    [
        ([[5, 6, 7, 1], [5, 6, 8, 1]], 2),
        ([[5, 6, 7], [5, 6]], 2),
        ([[5, 6], [5, 6], [5, 6]], 2),
        ([[5, 6, 7], [5, 6, 7], [5, 8, 7]], 1),
        ([[5], []], 0),
        ([[5, 6]], 2),
    ],
)
def test_of_tokens(sequences, length):
    assert common_length(sequences) == common_length(sequences[::-1]) == length


def test_of_messages():
    """Which have no order."""
    ask, say = ({"role": role, "content": "Why?"} for role in ("user", "assistant"))
    assert common_length([[ask, say], [ask, ask]]) == 1


def test_of_nothing():
    with pytest.raises(ValueError):
        common_length([])
