"""Roles of one base in every trainer, as they are: trained alone, saved alone, in full precision."""

import itertools

import pytest
import torch
from datasets import Dataset
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification
from shared_case import IDS, PAIRS, TEXTS, base_path, four_roles, lora, outputs, quiet, trained_names
from tiny import byte_tokenizer
from transformers import TrainerCallback
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
    SFTTrainer,
)

from trl_ext import (
    ImitationRewardConfig,
    ImitationRewardTrainer,
    PPOConfig,
    PPOTrainer,
    RAFTConfig,
    RAFTTrainer,
    ReSTConfig,
    ReSTTrainer,
    SharedBase,
)
from trl_ext.shared_base.shared_tree import storage_bytes

PROMPTS = Dataset.from_dict({"prompt": ["say it", "why?", "tell me", "go"] * 4})
ROLLOUTS = {"max_completion_length": 5}
STAGES = {"max_completion_length": 5, "num_stages": 1, "num_generations": 2, "drop_truncated": False, "max_steps": -1}
OFF_POLICY = {"num_generations": 2, "beta": 0.1} | ROLLOUTS


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return base_path(tmp_path_factory.mktemp("shared"))


def letters(completions, **columns):
    """Score: how many characters have an even code."""
    return [float(sum(ord(letter) % 2 == 0 for letter in text)) for text in completions]


def trainers(name, roles, folder, **changes):
    """A trainer of one role; the others are rewards and critic where it takes them."""
    policy, tokenizer = roles["policy"], byte_tokenizer()
    common = {"processing_class": tokenizer}
    rewards = [roles["scorer"], letters]
    make = {
        "sft": lambda: SFTTrainer(policy, SFTConfig(**quiet(folder, **changes)), train_dataset=TEXTS, **common),
        "reward": lambda: RewardTrainer(
            roles["reward"], RewardConfig(**quiet(folder, **changes)), train_dataset=PAIRS, **common
        ),
        "imitation": lambda: ImitationRewardTrainer(
            roles["reward"], ImitationRewardConfig(**quiet(folder, max_length=64, **changes)), train_dataset=PAIRS, **common
        ),
        "grpo": lambda: GRPOTrainer(
            policy, rewards, GRPOConfig(**quiet(folder, **OFF_POLICY | changes)), PROMPTS, **common
        ),
        "rloo": lambda: RLOOTrainer(
            policy, rewards, RLOOConfig(**quiet(folder, **OFF_POLICY | changes)), PROMPTS, **common
        ),
        "dpo": lambda: DPOTrainer(
            policy, args=DPOConfig(**quiet(folder, **changes)), train_dataset=PAIRS, **common
        ),
        "ppo": lambda: PPOTrainer(
            policy, rewards, PPOConfig(**quiet(folder, **ROLLOUTS | changes)), PROMPTS,
            value_model=roles["value"], **common,
        ),
        "raft": lambda: RAFTTrainer(
            policy, rewards, RAFTConfig(**quiet(folder, **STAGES | changes)), PROMPTS, **common
        ),
        "rest": lambda: ReSTTrainer(
            policy, rewards, ReSTConfig(**quiet(folder, **STAGES | {"thresholds": [0.0]} | changes)), PROMPTS, **common
        ),
    }  # fmt: skip
    return make[name]()


TRAINS = {"reward": {"reward"}, "imitation": {"reward"}, "ppo": {"policy", "value"}}
NAMES = ["sft", "reward", "imitation", "grpo", "rloo", "dpo", "ppo", "raft", "rest"]
CASES = [
    *itertools.product(NAMES, [8], [True]),
    *itertools.product(["ppo", "reward"], [None, 4], [True]),
    *itertools.product(["ppo", "grpo"], [None, 8], [False]),
]


def roles_with_scorer(base, **lora_changes):
    roles = four_roles(base, **lora_changes)
    roles["scorer"] = base.reward_model(lora(**lora_changes), name="scorer", seed=2)
    return roles


@pytest.mark.parametrize(("name", "bits", "checkpointing"), CASES)
def test_a_trainer_trains_its_role_and_no_other(name, bits, checkpointing, path, tmp_path):
    base = SharedBase.from_pretrained(path, bits=bits)
    roles = roles_with_scorer(base, lora_dropout=0.5)
    models = {key: getattr(role, "module", role) for key, role in roles.items() if key != "scorer"}
    models["scorer"] = roles["scorer"].module
    before = {key: outputs(model) for key, model in models.items()} | {"base": outputs(base.model)}
    bytes_before = storage_bytes(base.model, *models.values())
    trainer = trainers(name, roles, tmp_path, gradient_checkpointing=checkpointing)
    for model in models.values():
        names = [n for n in trained_names(model) if ".ref." not in n]
        assert {model.get_parameter(n).dtype for n in names} == {torch.float32}
    trainer.train()
    changed = {
        key for key, model in (models | {"base": base.model}).items() if not torch.equal(outputs(model), before[key])
    }
    assert changed == TRAINS.get(name, {"policy"})
    reference = sum(p.nbytes for n, p in models["policy"].named_parameters() if ".ref." in n)
    assert storage_bytes(base.model, *models.values()) == bytes_before + reference


@pytest.mark.parametrize("name", ["ppo", "grpo", "rloo"])
@pytest.mark.parametrize("bits", [None, 8])
def test_kl_is_measured_to_where_the_run_began(name, bits, path, tmp_path):
    """The SFT adapter, never the raw base: KL is 0 in the first rollout, and to the base it would not be."""
    base = SharedBase.from_pretrained(path, bits=bits)
    base.policy(lora(), name="sft").save_pretrained(tmp_path / "sft")
    roles = roles_with_scorer(base) | {"policy": base.policy(init_from=tmp_path / "sft", name="start")}
    trainer = trainers(name, roles, tmp_path, learning_rate=1e-2, gradient_checkpointing=False)
    policy = roles["policy"]
    with torch.no_grad(), policy.disable_adapter():
        raw = policy.eval()(IDS).logits.log_softmax(-1)
    away = (outputs(policy).log_softmax(-1) - raw).abs().max()
    assert away > 0.1  # so the raw base as reference would show
    trainer.train()
    kl = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]
    assert kl[0] == 0.0


def test_the_reference_is_not_saved_and_is_made_anew_on_resume(path, tmp_path):
    base = SharedBase.from_pretrained(path, bits=8)
    base.policy(lora(), name="sft").save_pretrained(tmp_path / "sft")
    options = {"learning_rate": 1e-2, "gradient_checkpointing": False, "save_strategy": "steps", "save_steps": 1}

    def trainer(name, **changes):
        policy = base.policy(init_from=tmp_path / "sft", name=name)
        args = PPOConfig(**quiet(tmp_path / "ppo", **ROLLOUTS | options | changes))
        return PPOTrainer(policy, letters, args, PROMPTS, processing_class=byte_tokenizer())

    def reference(run):
        return {n: p.detach().clone() for n, p in run.model.named_parameters() if ".ref." in n}

    first = trainer("first", max_steps=5)
    start = reference(first)
    first.train()
    first.save_model(str(tmp_path / "saved"))
    assert not list((tmp_path / "saved").rglob("ref")) and not list((tmp_path / "ppo").rglob("ref"))
    resumed = trainer("resumed", max_steps=5)
    resumed.train(resume_from_checkpoint=str(tmp_path / "ppo" / "checkpoint-2"))
    assert reference(resumed).keys() == start.keys()
    assert all(torch.equal(tensor, start[name]) for name, tensor in reference(resumed).items())
    assert torch.equal(outputs(resumed.model), outputs(first.model))
    moved = dict(resumed.model.named_parameters())
    assert any(not torch.equal(t, moved[n.replace(".ref.", ".default.")]) for n, t in start.items())


def test_resuming_and_evaluating_keep_it_one_base(path, tmp_path):
    base = SharedBase.from_pretrained(path, bits=8)
    roles = roles_with_scorer(base)
    others = {key: outputs(roles[key]) for key in ("reward", "second")}
    size = storage_bytes(base.model)
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 2}

    def train(policy, value, **how):
        args = PPOConfig(**quiet(tmp_path / "ppo", **ROLLOUTS | options | {"per_device_eval_batch_size": 4}))
        trainer = PPOTrainer(
            policy, [roles["scorer"]], args, PROMPTS, eval_dataset=PROMPTS.select(range(4)), value_model=value,
            processing_class=byte_tokenizer(),
        )  # fmt: skip
        trainer.train(**how)
        return policy

    whole = train(roles["policy"], roles["value"])
    torch.manual_seed(1)  # as four_roles does: the same beginning
    again = train(
        base.policy(lora(), name="again"), base.value_model(lora(), name="again"),
        resume_from_checkpoint=str(tmp_path / "ppo" / "checkpoint-1"),
    )  # fmt: skip
    torch.testing.assert_close(outputs(again), outputs(whole), rtol=0, atol=0)
    assert all(torch.equal(outputs(roles[key]), before) for key, before in others.items())
    assert storage_bytes(base.model) == size
    assert storage_bytes(again, besides=(base.model,)) < 2 * storage_bytes(roles["reward"], besides=(base.model,))


@pytest.mark.parametrize("trainer", ["sft", "ppo", "raft"])
def test_what_a_trainer_saves_is_a_plain_adapter(trainer, path, tmp_path):
    base = SharedBase.from_pretrained(path)
    roles = roles_with_scorer(base)
    run = trainers(trainer, roles, tmp_path / "run")
    run.train()
    run.save_model(str(tmp_path / "saved"))
    torch.testing.assert_close(
        outputs(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "saved")), outputs(roles["policy"])
    )
    assert torch.equal(outputs(base.policy(init_from=tmp_path / "saved")), outputs(roles["policy"]))


def test_what_the_reward_trainer_saves_is_a_plain_adapter(path, tmp_path):
    base = SharedBase.from_pretrained(path)
    reward = base.reward_model(lora())
    run = trainers("imitation", {"reward": reward.module, "policy": None, "scorer": None}, tmp_path / "run")
    run.train()
    run.save_model(str(tmp_path / "rm"))
    plain = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "rm", num_labels=1)
    plain.config.pad_token_id = base.tokenizer.pad_token_id
    torch.testing.assert_close(outputs(plain), outputs(reward.module))
    texts = {"prompts": ["a"], "completions": ["good"]}
    assert base.reward_model(tmp_path / "rm")(**texts) == pytest.approx(reward(**texts))


@pytest.mark.parametrize("name", ["grpo", "rloo", "ppo"])
def test_equal_completions_score_alike_beside_dropout(name, path, tmp_path):
    """TRL would score with the adapter's dropout on; here two equal scores stay equal, and so have no advantage."""
    base = SharedBase.from_pretrained(path)
    roles = roles_with_scorer(base, lora_dropout=0.5)
    reward, seen = roles["scorer"], []

    def twice_the_same(prompts, completions, **columns):
        scores = reward(prompts=["a"] * len(prompts), completions=["the same"] * len(completions))
        seen.append(scores)
        return scores

    roles["scorer"] = twice_the_same
    run = trainers(name, roles, tmp_path, reward_weights=[1.0, 0.0])
    run.train()
    assert seen and all(score == pytest.approx(seen[0][0], abs=1e-6) for scores in seen for score in scores)


@pytest.mark.parametrize("name", ["sft", "reward", "imitation", "grpo", "rloo", "ppo", "raft"])
def test_small_steps_move_adapters_on_a_quantised_base(name, path, tmp_path):
    """At lr 1e-5 a step is below half a unit of bf16, to which TRL casts adapters on a quantised base."""
    base = SharedBase.from_pretrained(path, bits=8)
    roles = roles_with_scorer(base)
    role = roles["reward" if name in ("reward", "imitation") else "policy"]
    matrices = {n: role.get_parameter(n) for n in trained_names(role) if "lora_A.default" in n}
    before = {n: p.detach().clone() for n, p in matrices.items()}
    run = trainers(name, roles, tmp_path, learning_rate=1e-5, lr_scheduler_type="constant")
    run.train()
    moved = torch.cat([(before[n] != p).flatten() for n, p in matrices.items()]).float().mean()
    assert moved > 0.95


def test_it_learns_in_8_bit_at_a_learning_rate_of_1e_5(path, tmp_path):
    """The loss of one batch falls in each of three thirds; with adapters in bf16 it stays where it is."""

    class ToBf16(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.to(torch.bfloat16)

    def losses(name, callbacks):
        base = SharedBase.from_pretrained(path, bits=8)
        torch.manual_seed(0)
        args = SFTConfig(
            **quiet(
                tmp_path / name, learning_rate=1e-5, max_steps=60, lr_scheduler_type="constant",
                per_device_train_batch_size=8, gradient_checkpointing=False, weight_decay=0.0,
            )
        )  # fmt: skip
        trainer = SFTTrainer(
            base.policy(lora(r=32)), args, train_dataset=TEXTS, processing_class=byte_tokenizer(), callbacks=callbacks
        )
        trainer.train()
        values = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return [sum(values[i : i + 20]) / 20 for i in (0, 20, 40)]

    full, cut = losses("fp32", []), losses("bf16", [ToBf16()])
    assert full[0] > full[1] > full[2]
    assert full[0] - full[2] > 3 * abs(cut[0] - cut[2])
