"""A judge or reward model that is another model than the policy, in the plan of a run."""

import pytest
from cli_case import write_rows
from shared_case import base_path, lora
from test_plan_terms import SHAPE
from tiny import byte_tokenizer, tiny_llama, tiny_reward_model
from transformers import BertConfig, BertForSequenceClassification
from trl import SFTConfig

from trl_ext import LikertReward, SharedBase, memory_plan
from trl_ext.cli import main
from trl_ext.memory_planning.layer_kinds import ModelShape
from trl_ext.memory_planning.memory_terms import base_bytes
from trl_ext.memory_planning.plan_changes import CHANGES
from trl_ext.memory_planning.trainer_plan import run_plan

JUDGE = ModelShape("judge", vocab=20, hidden=8, intermediate=16, layers=3, heads=2, kv_heads=2, head_dim=4)
SIZES = {"batch": 4, "micro_batch": 2, "prompt_length": 3, "completion_length": 2, "lora": 1, "device": "cpu"}


def planned(method="raft", **options):
    return memory_plan(SHAPE, method, **SIZES | {"reward_models": 0} | options)


def bytes_of(model) -> int:
    return sum(each.numel() * each.element_size() for each in (*model.parameters(), *model.buffers()))


def planned_run(policy, *rewards):
    args = SFTConfig("unused", use_cpu=True, bf16=False)
    return run_plan("grpo", policy, args, prompt_length=4, completion_length=4, rewards=rewards)


def test_a_judge_weighs_what_it_is_in_its_own_bits_by_hand():
    """Linear weights of a layer 4·64 + 3·128 = 640, each with a scale per output, and two norms; embeddings, head, norm."""
    plain, in_8 = planned(judges=[JUDGE]), planned(judges=[JUDGE], judge_bits=8)
    assert plain.phases["train"].terms["other bases"] == 2 * (3 * (640 + 2 * 8) + 2 * 20 * 8 + 8)
    outputs = 4 * 8 + 2 * 16 + 8
    assert in_8.phases["train"].terms["other bases"] == 3 * (640 + 4 * outputs) + 2 * (3 * 2 * 8 + 2 * 20 * 8 + 8)
    assert in_8.phases["load"].terms["one dequantised weight"] == 2 * 8 * 16
    alone = planned()
    assert plain.phases["train"].bytes - alone.phases["train"].bytes == plain.phases["train"].terms["other bases"]
    assert plain.phases["score"].terms["activations"] > planned(reward_models=1).phases["score"].terms["activations"]


def test_judges_add_up_and_one_like_the_policy_is_a_reward_model_of_its_own():
    """Of the policy's shape, without an adapter and with the head that it answers by."""
    both = planned(judges=[JUDGE, SHAPE])
    one, other = (planned(judges=[each]).phases["train"].terms["other bases"] for each in (JUDGE, SHAPE))
    assert both.phases["train"].terms["other bases"] == one + other == one + base_bytes(SHAPE, bits=None, width=2)
    apart = planned(reward_models=1, lora=None)
    assert other == apart.phases["train"].terms["other bases"] + 2 * SHAPE.head_params
    assert (
        planned(judges=[SHAPE], lora=None).phases["score"].terms["activations"]
        == apart.phases["score"].terms["activations"]
    )


def test_time_and_advice_hear_of_the_judge():
    plan = memory_plan("qwen2.5-7b", "raft", reward_models=0, judges=["llama-2-7b"], reward_batch=16)
    without = memory_plan("qwen2.5-7b", "raft", reward_models=0)
    assert plan.time_bound("RTX 4090").seconds["score"] > 0 == without.time_bound("RTX 4090").seconds["score"]
    assert 12 < (plan.phases["train"].bytes - without.phases["train"].bytes) / 2**30 < 14
    [smaller_passes] = [change for change in CHANGES if change.setting == "reward_batch"]
    assert smaller_passes.values(plan.settings) == [8, 4, 2, 1] and smaller_passes.values(without.settings) == []


def test_a_run_counts_its_judge_as_it_is_loaded():
    policy, tokenizer = tiny_llama(byte_tokenizer()), byte_tokenizer()
    large = tiny_llama(tokenizer, hidden_size=64, max_position_embeddings=1024)
    rewards = [LikertReward(large, tokenizer=tokenizer, name=name) for name in ("one", "two")]
    plan = planned_run(policy, *rewards)
    [judge] = plan.settings.judges
    assert judge.weights == bytes_of(large) and judge.shape.hidden == 64 and plan.settings.reward_models == 0
    more = plan.phases["train"].terms["other bases"] - planned_run(policy).phases["train"].terms["other bases"]
    assert more == bytes_of(large) and plan.settings.shared
    in_16 = LikertReward(tiny_llama(tokenizer, max_position_embeddings=1024).bfloat16(), tokenizer=tokenizer)
    [judge] = planned_run(policy, in_16).settings.judges  # of the policy's shape, and half its bytes
    assert judge.weights == bytes_of(in_16.model) < bytes_of(policy) and judge.width == 2


def test_a_role_of_the_policys_base_is_an_adapter_and_an_8_bit_model_of_its_own_is_not(tmp_path):
    base, other = (SharedBase.from_pretrained(base_path(tmp_path), bits=8) for _ in range(2))
    policy, role, own = base.policy(lora()), base.policy(lora(), name="judge"), other.policy(lora())
    same, apart = (planned_run(policy, LikertReward(model)).settings for model in (role, own))
    assert (same.judges, same.reward_models, same.shared) == ((), 1, True)
    assert (apart.judges, apart.reward_models, apart.shared) == ((), 1, False)  # alike: as a base of the same shape
    policy_in_32 = tiny_llama(byte_tokenizer(), max_position_embeddings=1024)
    [judge] = planned_run(policy_in_32, LikertReward(own)).settings.judges
    assert judge.bits == 8 and judge.weights == bytes_of(own)


def test_what_has_no_shape_is_weighed_and_named():
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    encoder = BertForSequenceClassification(BertConfig(vocab_size=300, num_labels=1, **sizes))

    class Scorer:
        batch_size = 4
        __name__ = "bert"

        def held_model(self):
            return encoder

        def __call__(self, *, completions, **columns):
            return [0.0] * len(completions)

    plan = planned_run(tiny_llama(byte_tokenizer()), Scorer())
    [judge] = plan.settings.judges
    assert judge.weights == bytes_of(encoder) and judge.shape is None
    assert any(
        "of no known shape: its weights are counted, and not what its passes need" in said for said in plan.assumed
    )


def test_a_value_model_of_another_shape_is_not_planned_for():
    tokenizer, args = byte_tokenizer(), SFTConfig("unused", use_cpu=True, bf16=False)
    policy, sizes = tiny_llama(tokenizer), {"prompt_length": 4, "completion_length": 4}
    plan = run_plan("ppo", policy, args, value_model=tiny_reward_model(tokenizer, vocab_size=300), **sizes)
    assert plan.settings.value_model  # more words alone are no other shape
    with pytest.raises(ValueError, match="the value model is of another shape than the policy"):
        run_plan("ppo", policy, args, value_model=tiny_reward_model(tokenizer, hidden_size=32), **sizes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"judges": "llama-2-7b"}, r"judges='llama-2-7b'\): expected a list of models"),
        ({"judges": ["no-such-model"]}, r"memory_plan\(judges=\[…\]\).*'no-such-model'"),
        ({"judges": [BertConfig()]}, "expected a decoder of text"),
        ({"judges": [JUDGE], "judge_bits": 5}, r"judge_bits=5\): expected None, 8 or 4"),
        ({"judge_bits": 8}, r"judge_bits=8\): there are no judges"),
        ({"judges": [JUDGE], "method": "sft"}, "nothing is scored. Leave judges out"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        planned(**options)


def test_the_command_takes_judges(capsys):
    main(["plan", "qwen2.5-7b", "--reward-models", "0", "--judges", "llama-2-7b", "mistral-7b", "--judge-bits", "8"])
    assert "other bases" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["plan", "qwen2.5-7b", "--judges", "llama-2-7b", "--judge-bits", "5"])
    assert "--judge-bits 5: expected 16, 8 or 4" in capsys.readouterr().err


def test_a_dry_run_counts_a_reward_model_of_another_shape(tmp_path, monkeypatch, capsys):
    from trl_ext.cli import train_policy

    monkeypatch.chdir(tmp_path)
    tokenizer, plans = byte_tokenizer(), []
    large = tiny_reward_model(tokenizer, hidden_size=64)
    for name, model in {"model": tiny_llama(tokenizer), "large": large, "alike": tiny_reward_model(tokenizer)}.items():
        model.save_pretrained(name)
        tokenizer.save_pretrained(name)
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"say {i}"} for i in range(8)])
    monkeypatch.setattr(
        train_policy, "memory_plan", lambda *args, **kw: plans.append(memory_plan(*args, **kw)) or plans[-1]
    )
    main(
        [
            "raft",
            "--model_name_or_path",
            "model",
            "--dataset_name",
            "prompts.jsonl",
            "--output_dir",
            "out",
            "--max_completion_length",
            "4",
            "--per_device_train_batch_size",
            "4",
            "--dry_run",
            "--reward_funcs",
            "large",
            "alike",
        ]
    )
    [judge] = plans[0].settings.judges
    assert plans[0].settings.reward_models == 1 and judge.name == "large" and judge.width == 4
    heads = 64  # of scores, in fp32; its adapter's line has them otherwise
    assert judge.weights == 4 * (sum(each.numel() for each in large.parameters()) - heads)
