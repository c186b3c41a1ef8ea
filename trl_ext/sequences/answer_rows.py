"""Reference answers as tokens and labels, so that a model's NLL of them can be read."""

from collections.abc import Iterable

from datasets import Dataset
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from trl_ext.sequences.prompt_facts import reading_of
from trl_ext.sequences.samples import as_completion
from trl_ext.sequences.texts import Text
from trl_ext.sequences.token_ids import TemplateKwargs, prompt_and_completion_ids
from trl_ext.sequences.training_rows import TrainingRow, training_row
from trl_ext.sequences.vocabulary import check_ids, embedding_rows, unread_tokens
from trl_ext.sequences.windows import model_window
from trl_ext.trainer_kit.kept_facts import kept


def answer_rows(
    prompts: Iterable[Text],
    answers: Iterable[Text | None],
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig,
    template_kwargs: TemplateKwargs = None,
    *,
    call: str,
) -> dict[int, TrainingRow]:
    """Prompts with those answers that there are, their ends included, by the rows' numbers.

    Args:
        prompts: Text or messages.
        answers: Text as it continues its prompt, or messages; None or empty where there is none.
        tokenizer, config: The model's.
        template_kwargs: For the chat template.
        call: Who asks, for messages.

    Raises:
        ValueError: For an answer that is neither, that with its prompt passes the model's window, or with a token that
            the model has no embedding for.
    """
    rows, window = {}, model_window(config)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        if not answer:
            continue
        if not isinstance(answer, str | type(prompt)):
            raise ValueError(
                f"{call}: the answer of row {row} is {answer!r}, expected text, or messages where the prompt is. Correct "
                "it, or name no column of answers."
            )
        completion = as_completion(prompt, answer) if isinstance(answer, str) else answer
        rows[row] = training_row(*prompt_and_completion_ids(prompt, completion, tokenizer, template_kwargs))
        if window is not None and len(rows[row]["input_ids"]) > window:
            raise ValueError(
                f"{call}: the answer of row {row} has, with its prompt, {len(rows[row]['input_ids'])} tokens, and the "
                f"model's window is {window}. Drop or shorten such answers, or name no column of them."
            )
    check_ids((row["input_ids"] for row in rows.values()), tokenizer, config, call=call)
    return rows


def check_answers(
    dataset: Dataset | None,
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig,
    template_kwargs: TemplateKwargs = None,
    *,
    call: str,
) -> None:
    """Raise a ValueError for the first of a data set's completions, if it has any, with a token without an embedding."""
    if dataset is None or "completion" not in dataset.column_names or not unread_tokens(tokenizer, config):
        return

    def look() -> None:
        told = zip(dataset["prompt"], dataset["completion"], strict=True)
        read = (
            prompt_and_completion_ids(*pair, tokenizer, template_kwargs)[1] for pair in told if pair[1] is not None
        )
        check_ids(read, tokenizer, config, call=call)

    reading = reading_of(tokenizer, template_kwargs)
    by = None if reading is None else [*reading, embedding_rows(config)]
    kept(dataset, "answers", look, columns=["prompt", "completion"], by=by)
