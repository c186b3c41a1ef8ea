import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import byte_tokenizer, tiny_reward_model
from transformers import MistralConfig, MistralForSequenceClassification

from trl_ext import LearnedReward
from trl_ext.rewards import shared_prefix
from trl_ext.rewards.shared_prefix import groups_to_share
from trl_ext.trainer_kit.passes import can_share

PROMPTS = ["a long prompt " * 8] * 4 + ["short"] * 4 + ["another long prompt " * 6] * 4
COMPLETIONS = ["one", "", "two words", "one"] * 3


def scores(model, tokenizer, **columns) -> list[float]:
    reward = LearnedReward(model, tokenizer, batch_size=3, max_length=240)
    return reward(prompts=PROMPTS, completions=COMPLETIONS, **columns)


def count_tokens(model) -> list[int]:
    seen = []
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: seen.append(args[0].numel()))
    return seen


@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_scores_are_those_of_whole_sequences(monkeypatch, pad_is_eos):
    tokenizer = byte_tokenizer(pad_is_eos=pad_is_eos)
    model = tiny_reward_model(tokenizer)
    ended = [True, True, False, False] * 3
    shared = scores(model, tokenizer, completion_ended=ended)
    monkeypatch.setattr(shared_prefix, "LEAST_SAVED", 10**9)
    assert shared == pytest.approx(scores(model, tokenizer, completion_ended=ended), abs=1e-5)


def test_a_long_prompt_is_read_once(monkeypatch, tokenizer):
    model = tiny_reward_model(tokenizer)
    read = count_tokens(model)
    scores(model, tokenizer)
    with_sharing = sum(read)
    read.clear()
    monkeypatch.setattr(shared_prefix, "LEAST_SAVED", 10**9)
    scores(model, tokenizer)
    assert with_sharing < 0.65 * sum(read)


def test_adapters_and_windows_work_too(monkeypatch, tokenizer):
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS", init_lora_weights=False)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = MistralConfig(
        **sizes, num_key_value_heads=2, vocab_size=len(tokenizer), num_labels=1, sliding_window=16, pad_token_id=0
    )
    models = [get_peft_model(tiny_reward_model(tokenizer), lora), MistralForSequenceClassification(config).eval()]
    for model in models:
        assert can_share(model)
        with monkeypatch.context() as patch:
            shared = scores(model, tokenizer)
            patch.setattr(shared_prefix, "LEAST_SAVED", 10**9)
            assert shared == pytest.approx(scores(model, tokenizer), abs=1e-5)


def test_only_neighbours_of_one_prompt_share():
    ids = [[1] * 300 + [2, 3], [1] * 300 + [3], [4] * 300]
    assert groups_to_share(["a", "b", "a"], ids) == []
    assert groups_to_share(["a", "a", "b"], ids) == [([0, 1], 299)]


def test_short_prompts_are_batched_instead():
    assert groups_to_share(["a"] * 8, [[1] * 20 + [i] for i in range(8)]) == []
