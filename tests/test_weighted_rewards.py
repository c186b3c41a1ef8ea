import pytest
import torch
from tiny import byte_tokenizer, tiny_reward_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from trl_ext import LearnedReward
from trl_ext.rewards.weighted_rewards import weighted_scores
from trl_ext.sequences.continuations import as_continuations

NAN = float("nan")


def test_by_hand():
    rewards = torch.tensor([[1.0, 4.0], [2.0, NAN], [NAN, 6.0], [NAN, NAN]])
    # 1·1 + .5·4 = 3;  1·2 = 2;  .5·6 = 3;  none
    scores = weighted_scores(rewards, torch.tensor([1.0, 0.5]))
    torch.testing.assert_close(scores, torch.tensor([3.0, 2.0, 3.0, NAN]), equal_nan=True)


def test_what_is_only_watched_scores_nothing():
    rewards = torch.tensor([[NAN, 4.0], [2.0, 4.0]])
    scores = weighted_scores(rewards, torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(scores, torch.tensor([NAN, 2.0]), equal_nan=True)
    with pytest.raises(ValueError, match="no reward function scored any of the 1 completions"):
        weighted_scores(rewards[:1], torch.tensor([1.0, 0.0]))


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
