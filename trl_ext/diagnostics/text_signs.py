"""Signs in one text alone: how much of its prompt it copies, and how much it repeats itself."""

from trl_ext.rewards.repetition_penalty import RepetitionPenalty
from trl_ext.sequences.text_shapes import content_text
from trl_ext.sequences.texts import Text, wordpunct

NGRAM = 3  # words


def prompt_text(prompt: Text) -> str:
    """What was asked: text as it is; of messages the last user turn, or all of them where nobody asks."""
    if isinstance(prompt, str):
        return prompt
    turns = [content_text(message.get("content")) for message in prompt if message["role"] == "user"]
    return turns[-1] if turns else "\n".join(content_text(message.get("content")) for message in prompt)


def copied_share(prompt: str, completion: str, *, ngram: int = NGRAM) -> float:
    """Share of the prompt's distinct word n-grams that stand in the completion too; 0 for a prompt without words.

    Of a prompt shorter than an n-gram, the n-gram is as long as the prompt.

    >>> copied_share("where is the cat now", "the dog: where is the cat")  # 2 of 3
    0.6666666666666666
    """
    asked, said = wordpunct(prompt), wordpunct(completion)
    n = min(ngram, len(asked))
    grams = _ngrams(asked, n)
    return len(grams & _ngrams(said, n)) / len(grams) if grams else 0.0


def repetition(completion: str, *, ngram: int = NGRAM) -> float:
    """Share of the completion's word n-grams that repeat an earlier one, 1 − RP of R³.

    >>> repetition("no no no no no")
    0.6666666666666667
    """
    return 1.0 - RepetitionPenalty(ngram=ngram)(completions=[completion])[0]


def _ngrams(words: list[str], n: int) -> set[tuple[str, ...]]:
    return set(zip(*(words[i:] for i in range(n)), strict=False)) if n else set()
