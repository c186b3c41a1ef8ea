"""What was sampled, as it continues its prompt: with the space that it begins with."""

from tiny import byte_tokenizer, tiny_reward_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from trl_ext import LearnedReward
from trl_ext.generation.protocol import Policy
from trl_ext.sequences.continuations import as_continuations, continuation_texts


def sentencepiece_like():
    """Marks the beginning of words, and forgets the first space when it decodes, as Llama-2's tokenizer does."""
    words = ["<unk>", "<eos>", "▁a", "▁queen.", "▁She", "▁played."]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<eos>", pad_token="<eos>")


def test_the_space_before_a_completion_is_kept():
    tokenizer = sentencepiece_like()
    ids = tokenizer("a queen. She played.")["input_ids"]
    decoded = tokenizer.batch_decode([ids[2:]])
    assert decoded == ["She played."]  # why decoding it alone will not do
    assert as_continuations(decoded, [[*ids[2:], tokenizer.eos_token_id]], tokenizer) == [" She played."]


def test_a_reward_model_reads_the_tokens_that_were_sampled():
    tokenizer = sentencepiece_like()
    reward = LearnedReward(tiny_reward_model(tokenizer), tokenizer)
    ids = tokenizer("a queen. She played.")["input_ids"]
    (completion,) = as_continuations([""], [ids[2:]], tokenizer)
    assert reward.token_ids("a queen.", completion, ended=False) == ids


def test_other_completions_stay_as_they_are():
    tokenizer, texts = byte_tokenizer(), [" one", "two", "", "é"]
    assert as_continuations(texts, tokenizer(texts)["input_ids"], tokenizer) == texts
    messages = [[{"role": "assistant", "content": "hi"}]]
    assert as_continuations(messages, [[5]], tokenizer) is messages


def test_a_completion_that_quotes_its_prompt_keeps_it(tokenizer):
    """Known bug: prompt removed with str.replace, wherever the completion says it again."""
    ids = tokenizer(" say it, say it")["input_ids"]
    assert continuation_texts([ids], tokenizer) == [" say it, say it"]
    assert Policy(None, tokenizer).completion_texts(["say it"], [ids]) == [" say it, say it"]
