import copy
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from ppo_case import PROMPTS, even_letters, logged, ppo_trainer, rollout_of, several_end_tokens
from safetensors.torch import load_file
from tiny import byte_tokenizer, tiny_llama, tiny_reward_model
from transformers import AutoModelForSequenceClassification, LlamaForCausalLM, TrainerCallback

from trl_ext import LearnedReward
from trl_ext.ppo.critic import CriticCallback
from trl_ext.trainer_kit.overrides import outputs_of

LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"]}


def with_random_adapter(model):
    """An adapter as if trained: B ≠ 0."""
    torch.manual_seed(1)
    return get_peft_model(model, LoraConfig(**LORA, init_lora_weights=False))


# Batches


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("size", [1, 3, 4])
def test_any_generation_batch_size(tmp_path, size, accumulation):
    trainer = ppo_trainer(
        tmp_path,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        num_iterations=2,
        eval_strategy="steps",
        eval_steps=1,
        per_device_eval_batch_size=size,
        eval_dataset=Dataset.from_dict({"prompt": PROMPTS[:5]}),
    )
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    assert trainer.args.num_generations == 1 and trainer.state.global_step == 2
    assert len(logged(trainer, "eval_score")) == 2
    if size > 1:  # one completion alone is no better than itself: whitened to 0
        assert any(not torch.equal(before[name], tensor) for name, tensor in trainer.model.state_dict().items())


def test_several_completions_per_prompt(tmp_path):
    trainer = ppo_trainer(tmp_path, num_generations=2)
    prompts = [row["prompt"] for row in next(iter(trainer.get_train_dataloader()))]
    assert prompts[0] == prompts[1] and prompts[2] == prompts[3]
    trainer.train()


@several_end_tokens
def test_accumulation_equals_one_large_batch(tmp_path):
    """Policy and value loss share one denominator, the real tokens of the accumulation window."""

    def weights(**batching):
        policy = tiny_llama(byte_tokenizer())
        policy.generation_config.eos_token_id = [1, *range(3, 60)]  # many tokens end a completion: lengths differ
        trainer = ppo_trainer(
            tmp_path, model=policy, **batching, num_iterations=1, max_steps=1, optim="sgd", max_grad_norm=0.0
        )
        lengths = []
        trainer.add_callback(LengthsSeen(trainer, lengths))
        trainer.train()
        return {**trainer.model.state_dict(), "value": trainer.critic.parameters()[0]}, lengths

    whole, lengths = weights(per_device_train_batch_size=4)
    parts, same_lengths = weights(per_device_train_batch_size=1, gradient_accumulation_steps=4)
    assert sorted(lengths) == sorted(same_lengths) and len(set(lengths)) > 1
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], atol=1e-6, rtol=1e-5)


class LengthsSeen(TrainerCallback):
    def __init__(self, trainer, lengths):
        self.trainer, self.lengths = trainer, lengths

    def on_step_end(self, args, state, control, **kwargs):
        self.lengths += [n for batch in self.trainer._buffered_inputs for n in batch["tool_mask"].sum(1).tolist()]


# Reference and KL


@pytest.mark.parametrize("kind", ["object", "trained_object", "checkpoint", "new_adapter", "trained_adapter"])
def test_kl_is_exactly_0_at_the_start(tmp_path, kind):
    """The reference is the policy as it was when the run began, not the checkpoint or the base that it came from."""
    tokenizer = byte_tokenizer()
    tiny_llama(tokenizer).save_pretrained(tmp_path / "base")
    model = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    options = {}
    if kind == "checkpoint":
        tokenizer.save_pretrained(tmp_path / "base")
        model = str(tmp_path / "base")
    if kind == "trained_object":
        with torch.no_grad():
            model.lm_head.weight += torch.randn_like(model.lm_head.weight)
    if kind == "new_adapter":
        options = {"peft_config": LoraConfig(**LORA)}
    if kind == "trained_adapter":
        model = with_random_adapter(model)
    trainer = ppo_trainer(tmp_path, model=model, num_iterations=1, max_steps=2, beta=0.1, **options)
    trainer.train()
    assert logged(trainer, "kl")[0] == logged(trainer, "kl_per_completion")[0] == 0.0
    assert abs(logged(trainer, "kl")[1]) > 1e-6  # the policy moved, its reference did not


def test_kl_of_a_trained_adapter_is_not_to_the_base(tmp_path):
    model = with_random_adapter(tiny_llama(byte_tokenizer()))
    trainer = ppo_trainer(tmp_path, model=model)
    rollout = rollout_of(trainer)
    with model.disable_adapter():
        to_base = trainer._evaluate_policy(rollout)[0]
    assert (rollout["old_per_token_logps"] - to_base).abs().max() > 1e-3


def test_kl_is_not_charged_again_in_the_loss(tmp_path):
    trainer = ppo_trainer(tmp_path, beta=0.5)
    trainer.current_gradient_accumulation_steps = 1
    with torch.no_grad():
        trainer.model.lm_head.weight *= 1.5  # away from the reference
    rollout = rollout_of(trainer)
    assert trainer._metrics["train"]["kl"][0] > 1e-3
    loss = trainer._compute_loss(trainer.model, rollout)
    trainer.beta = 0.0
    assert torch.equal(loss, trainer._compute_loss(trainer.model, rollout))


def test_returns_by_hand(tmp_path):
    """V = 0: the λ-return of each token is Σ (γλ)^l r_{t+l}, with −β·kl on each and the score on the last."""
    trainer = ppo_trainer(
        tmp_path, beta=0.3, gamma=0.9, lam=0.8, score_scaling=False, whiten_advantages=False, num_iterations=1
    )
    with torch.no_grad():
        trainer.model.lm_head.weight *= 1.2  # away from the reference
    rollout = rollout_of(trainer)
    with torch.no_grad():
        reference = ppo_trainer(tmp_path, model=tiny_llama(byte_tokenizer()))
        reference.model.train()
        ref_log_probs, _ = reference._evaluate_policy(rollout)
    texts = trainer._tokenizer.batch_decode(
        [ids[mask.bool()] for ids, mask in zip(rollout["completion_ids"], rollout["completion_mask"], strict=True)],
        skip_special_tokens=True,
    )
    for row, score in enumerate(even_letters(texts)):
        length = int(rollout["completion_mask"][row].sum())
        kl = rollout["old_per_token_logps"][row] - ref_log_probs[row]
        rewards = [-0.3 * kl[t].item() + (score if t == length - 1 else 0.0) for t in range(length)]
        returns = [sum(0.72 ** (s - t) * rewards[s] for s in range(t, length)) for t in range(length)]
        torch.testing.assert_close(rollout["returns"][row, :length], torch.tensor(returns))
        torch.testing.assert_close(rollout["advantages"][row, :length], torch.tensor(returns))
        assert not rollout["returns"][row, length:].any()


# Critic


@pytest.mark.parametrize("critic", ["head", "value_model"])
def test_rollout_values_and_log_probs_are_those_of_the_loss(tmp_path, critic):
    """After TRL's rollout the module's last pass is the reference's; a fresh LoRA (B = 0) would hide that."""
    tokenizer = byte_tokenizer()
    trainer = ppo_trainer(
        tmp_path,
        model=with_random_adapter(tiny_llama(tokenizer)),
        value_model=tiny_reward_model(tokenizer, seed=5) if critic == "value_model" else None,
        beta=0.1,
    )
    trainer.current_gradient_accumulation_steps = 1
    for parameter in trainer.critic.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    rollout = rollout_of(trainer)
    seen = {}
    trainer.critic.module.register_forward_hook(lambda module, args, output: seen.update(values=output))
    with outputs_of(trainer, "_get_per_token_logps_and_entropies") as passes:
        trainer._compute_loss(trainer.model, rollout)
    own, length = rollout["tool_mask"].bool(), rollout["completion_ids"].size(1)
    torch.testing.assert_close(seen["values"][:, -length - 1 : -1][own], rollout["values"][own], atol=1e-6, rtol=0)
    torch.testing.assert_close(passes[0][0][own], rollout["old_per_token_logps"][own], atol=1e-6, rtol=0)
    assert rollout["values"][own].std() > 1e-3


def test_value_stands_where_the_token_is_predicted(tmp_path):
    """V_t depends on the prompt and the tokens before t, not on token t."""
    trainer = ppo_trainer(tmp_path)
    torch.nn.init.normal_(trainer.critic.parameters()[0])
    rollout = rollout_of(trainer)
    changed = {**rollout, "completion_ids": rollout["completion_ids"].clone()}
    changed["completion_ids"][:, 2] = 7
    before, after = (trainer._evaluate_policy(r)[1] for r in (rollout, changed))
    torch.testing.assert_close(before[:, :3], after[:, :3])
    assert (before[:, 3] - after[:, 3]).abs().min() > 0


@pytest.mark.parametrize("critic", ["head", "value_model"])
def test_critic_gradient_is_clear_when_a_window_starts(tmp_path, critic):
    value_model = tiny_reward_model(byte_tokenizer(), seed=5) if critic == "value_model" else None
    trainer = ppo_trainer(
        tmp_path, value_model=value_model, per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=3
    )
    seen = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            seen.append(all(p.grad is None for p in trainer.critic.parameters()))

        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            norms = [p.grad.norm() for p in trainer.critic.parameters() if p.grad is not None]
            seen.append(0 < torch.stack(norms).norm() <= args.max_grad_norm * 1.001)

    trainer.args.max_grad_norm = 0.01
    trainer.add_callback(Watch())
    start = [p.detach().clone() for p in trainer.critic.parameters()]
    trainer.train()
    assert seen == [True] * 6
    assert any(not torch.equal(p, q) for p, q in zip(start, trainer.critic.parameters(), strict=True))


@pytest.mark.parametrize("clip", [-1.0, 0.0])
def test_a_norm_that_is_not_positive_clips_nothing(clip):
    """As Trainer has it for the policy; a negative factor would turn the critic's gradient round."""
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    weight.grad = torch.tensor([3.0, 4.0])
    critic = SimpleNamespace(parameters=lambda: [weight])
    CriticCallback(critic, lambda: False).on_pre_optimizer_step(SimpleNamespace(max_grad_norm=clip), None, None)
    assert weight.grad.tolist() == [3.0, 4.0]


def test_nothing_to_learn_moves_no_weight(tmp_path):
    trainer = ppo_trainer(
        tmp_path, reward_funcs=lambda completions, **_: [0.0] * len(completions), beta=0.0, max_steps=4
    )
    start = copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(start[name], tensor), name


def test_detached_critic_leaves_the_policy_alone(tmp_path):
    def policy_gradient(detach, value_coef):
        trainer = ppo_trainer(tmp_path, detach_critic=detach, value_coef=value_coef)
        torch.nn.init.normal_(trainer.critic.parameters()[0], generator=torch.Generator().manual_seed(0))
        trainer.current_gradient_accumulation_steps = 1
        torch.manual_seed(0)
        rollout = rollout_of(trainer)
        trainer._compute_loss(trainer.model, rollout).backward()
        return trainer.model.model.layers[0].mlp.up_proj.weight.grad

    assert torch.equal(policy_gradient(True, 0.0), policy_gradient(True, 9.0))
    assert not torch.allclose(policy_gradient(True, 0.0), policy_gradient(False, 9.0))


def test_warm_up_trains_the_critic_alone(tmp_path):
    trainer = ppo_trainer(tmp_path, critic_warmup_rollouts=2, num_iterations=2, max_steps=6, weight_decay=0.1)
    policy, critic = [], []

    class Snapshots(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            policy.append(trainer.model.lm_head.weight.detach().clone())
            critic.append(trainer.critic.parameters()[0].detach().clone())

    trainer.add_callback(Snapshots())
    start = trainer.model.lm_head.weight.detach().clone()
    trainer.train()
    assert all(torch.equal(start, weight) for weight in policy[:4])  # two rollouts of two epochs
    assert not torch.equal(start, policy[4])
    assert not torch.equal(critic[0], critic[3])


def test_critic_learning_rates(tmp_path):
    def rates(**options):
        trainer = ppo_trainer(tmp_path, learning_rate=1e-3, **options)
        trainer.create_optimizer()
        trainer.create_optimizer()  # does not join twice
        ids = {id(p) for p in trainer.critic.parameters()}
        groups = [g for g in trainer.optimizer.param_groups if ids & {id(p) for p in g["params"]}]
        assert sum(len(g["params"]) for g in groups) == len(ids)
        return {g["lr"] for g in groups}

    assert rates() == {1e-2}
    assert rates(value_model=tiny_reward_model(byte_tokenizer())) == {1e-3}
    assert rates(critic_learning_rate=0.5) == {0.5}


def test_an_optimizer_of_ones_own_trains_the_critic_too(tmp_path):
    policy = tiny_llama(byte_tokenizer())
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    trainer = ppo_trainer(tmp_path, model=policy, optimizers=(optimizer, None))
    trainer.train()
    assert trainer.critic.parameters()[0].abs().sum() > 0


def test_value_model_without_a_pad_token(tmp_path):
    value_model = tiny_reward_model(byte_tokenizer(), seed=5)
    value_model.config.pad_token_id = None
    ppo_trainer(tmp_path, value_model=value_model, max_steps=1).train()


def test_default_learning_rate(tmp_path):
    assert ppo_trainer(tmp_path, learning_rate=None).args.learning_rate == 1e-6
    assert ppo_trainer(tmp_path, learning_rate=None, peft_config=LoraConfig(**LORA)).args.learning_rate == 1e-5


# Adapters


def test_only_the_adapter_trains_and_what_is_saved_is_only_the_adapter(tmp_path):
    base = tiny_llama(byte_tokenizer())
    trainer = ppo_trainer(tmp_path, model=with_random_adapter(base), max_steps=2)
    frozen = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if not p.requires_grad}
    assert any(".ref." in name for name in frozen)
    trainer.train()
    after = dict(trainer.model.named_parameters())
    assert all(torch.equal(tensor, after[name]) for name, tensor in frozen.items())
    trainer.save_model(tmp_path / "saved")
    assert not (tmp_path / "saved" / "ref").exists()
    assert not any(".ref." in name for name in load_file(tmp_path / "saved" / "adapter_model.safetensors"))
    loaded = PeftModel.from_pretrained(tiny_llama(byte_tokenizer()), tmp_path / "saved")
    ids = torch.arange(5, 15).unsqueeze(0)
    torch.testing.assert_close(loaded(ids).logits, trainer.model.eval()(ids).logits)


# What is logged


def test_metrics(tmp_path):
    trainer = ppo_trainer(tmp_path, per_device_train_batch_size=4, num_iterations=2)
    trainer.train()
    log = {name: value for entry in trainer.state.log_history[:1] for name, value in entry.items()}
    names = [
        "score", "rows_unscored", "kl", "kl_per_completion", "own_length", "perplexity", "explained_variance", "value_loss",
        "clip_ratio/value", "clip_ratio/region_mean", "ratio", "entropy", "completions/mean_length",
        "completions/eos_ratio",
    ]  # fmt: skip
    assert not set(names) - set(log)
    assert not {"frac_reward_zero_std"} & set(log)
    assert log["ratio"] == pytest.approx(1.0, abs=1e-6) and log["clip_ratio/region_mean"] == 0.0
    assert log["perplexity"] == pytest.approx(math.exp(5.5), rel=0.2)  # near uniform over 259 tokens
    assert logged(trainer, "ratio")[1] != 1.0


def test_every_logged_name_is_in_the_glossary(tmp_path):
    """`trl_ext/README.md` names each, in backticks, or by its beginning where several share a row."""
    trainer = ppo_trainer(
        tmp_path, eval_strategy="steps", eval_steps=1, eval_dataset=Dataset.from_dict({"prompt": ["a"]})
    )
    trainer.train()
    names = {name.removeprefix("eval_") for entry in trainer.state.log_history[:2] for name in entry}
    names -= {"step", "runtime", "samples_per_second", "steps_per_second"}
    glossary = (Path(__file__).parents[1] / "trl_ext" / "README.md").read_text()
    glossary = glossary.replace("rewards/<name>", "rewards/even_letters").replace("low_mean", "clip_ratio/low_mean")
    glossary = glossary.replace("`high_mean", "`clip_ratio/high_mean")
    for row in ("mean_length", "mean_terminated_length"):
        glossary += "".join(f"`completions/{row.replace('mean', side)}`" for side in ("min", "max"))
    assert {name for name in names if f"`{name}`" not in glossary} == set()


def test_metrics_by_hand(tmp_path):
    trainer = ppo_trainer(tmp_path, beta=0.1, num_iterations=1)
    with torch.no_grad():
        trainer.model.lm_head.weight *= 1.5
    rollout = rollout_of(trainer)
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    own = rollout["completion_mask"].bool()
    assert metrics["perplexity"] == pytest.approx(rollout["old_per_token_logps"][own].mean().neg().exp().item())
    assert metrics["kl_per_completion"] == pytest.approx(metrics["kl"] * own.sum().item() / 4, rel=1e-5)
    ended = (rollout["completion_ids"] == trainer._tokenizer.eos_token_id).any(1).float().mean().item()
    assert metrics["completions/eos_ratio"] == pytest.approx(ended)


@several_end_tokens
def test_truncated_completions_can_be_left_out(tmp_path):
    policy = tiny_llama(byte_tokenizer())
    policy.generation_config.eos_token_id = [1, *range(3, 60)]
    trainer = ppo_trainer(tmp_path, model=policy, mask_truncated_completions=True, max_completion_length=3)
    trainer.current_gradient_accumulation_steps = 1
    rollout = rollout_of(trainer, [{"prompt": prompt} for prompt in PROMPTS])
    cut = ~torch.isin(rollout["completion_ids"], torch.tensor(trainer.eos_token_ids)).any(1)
    assert 0 < cut.sum() < len(PROMPTS)
    assert torch.equal(rollout["tool_mask"].sum(1) == 0, cut)
    assert all(rollout[name][cut].abs().sum() == 0 for name in ("advantages", "returns"))
    start = policy.lm_head.weight.detach().clone()
    trainer.train()
    assert not torch.equal(start, policy.lm_head.weight)
    assert all(math.isfinite(loss) for loss in logged(trainer, "loss"))


def test_the_value_model_is_checkpointed_as_the_policy_is(tmp_path):
    from transformers.modeling_layers import GradientCheckpointingLayer

    trainer = ppo_trainer(
        tmp_path,
        value_model=tiny_reward_model(byte_tokenizer()),
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": True},
        max_steps=1,
    )
    layers = [m for m in trainer.critic.module.modules() if isinstance(m, GradientCheckpointingLayer)]
    assert layers and all(m._gradient_checkpointing_func.keywords["use_reentrant"] for m in layers)
    trainer.train()


@pytest.mark.parametrize("adapter", [False, True])
def test_the_value_model_is_saved_as_one(adapter, tmp_path):
    tokenizer = byte_tokenizer()
    tiny_reward_model(tokenizer).save_pretrained(tmp_path / "scorer")
    tokenizer.save_pretrained(tmp_path / "scorer")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "scorer")
    if adapter:
        model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"]))
    trainer = ppo_trainer(tmp_path / "ppo", value_model=model)
    trainer.train()
    trainer.save_value_model(tmp_path / "value")
    score = LearnedReward(str(tmp_path / "value"))
    now = LearnedReward(model.eval(), tokenizer)
    asked = {"prompts": ["why?", "go"], "completions": [" so", " on"]}
    assert score(**asked) == pytest.approx(now(**asked), abs=1e-5)
    assert score(**asked) != pytest.approx(LearnedReward(str(tmp_path / "scorer"))(**asked), abs=1e-5)
