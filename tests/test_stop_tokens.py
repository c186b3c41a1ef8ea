import pytest
from ppo_case import ppo_trainer, rollout_of, several_end_tokens
from tiny import byte_tokenizer

from trl_ext.ppo.stop_tokens import stop_token_ids
from trl_ext.trainer_kit.trl_versions import add_end_tokens, end_tokens


def test_ids():
    tokenizer = byte_tokenizer()
    assert stop_token_ids(["a", "<eos>", "!"], tokenizer) == [
        tokenizer.convert_tokens_to_ids(t) for t in ("a", "<eos>", "!")
    ]


@pytest.mark.parametrize("token", ["ab", "", "<|im_end|>"])
def test_a_text_that_is_no_token(tmp_path, token):
    with pytest.raises(
        ValueError, match=r"PPOConfig\(stop_tokens=.*is no token of the tokenizer .*Name one of its tokens"
    ):
        ppo_trainer(tmp_path, stop_tokens=[token])


@several_end_tokens
def test_a_completion_ends_with_its_first_stop_token(tmp_path):
    letters = [
        chr(code) for code in range(ord("!"), ord("z"))
    ]  # about a third of all tokens: most completions meet one
    seen = []

    def ended(completions, completion_ended, **columns):
        seen.extend(completion_ended)
        return [0.0] * len(completions)

    trainer = ppo_trainer(tmp_path, reward_funcs=ended, stop_tokens=letters, max_completion_length=12)
    rollout = rollout_of(trainer)
    stops = set(trainer.eos_token_ids)
    for ids, mask, has_ended in zip(rollout["completion_ids"], rollout["completion_mask"], seen, strict=True):
        own = ids[mask.bool()].tolist()
        assert not stops & set(own[:-1])
        assert has_ended == (own[-1] in stops)
    assert any(seen)


def test_without_them_only_the_end_token_ends(tmp_path):
    assert end_tokens(ppo_trainer(tmp_path)) == [byte_tokenizer().eos_token_id]


def test_a_trl_that_knows_one_end_token_refuses_more(tmp_path):
    trainer = ppo_trainer(tmp_path)
    vars(trainer).pop("eos_token_ids", None)  # which TRL 1.12 has not
    with pytest.raises(ValueError, match=r"knows one end token only, so stop_tokens=\[5\].*Upgrade TRL"):
        add_end_tokens(trainer, [5])


def test_vllm_is_not_told(tmp_path):
    with pytest.raises(ValueError, match=r"stop_tokens=\['a'\], use_vllm=True\): .*vLLM would not be told"):
        ppo_trainer(tmp_path, stop_tokens=["a"], use_vllm=True)
