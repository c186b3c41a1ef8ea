"""What TRL 1.12 held in one update, and a trainer of ours that starts from it."""

import json
from pathlib import Path

import torch
from parity_models import SIZES, causal_lm, scorer
from ppo_case import ppo_trainer
from tiny import byte_tokenizer

from trl_ext.ppo.advantages import generalized_advantages
from trl_ext.ppo.token_rewards import token_rewards

FIXTURE = json.loads((Path(__file__).parent / "fixtures" / "trl_1_12.json").read_text())


class Seen:
    """What TRL held in one update: its options, tensors of the rollout by name, and those of each epoch."""

    def __init__(self, case: str):
        self.case, record = case, FIXTURE["cases"][case]
        self.options = record["options"]
        self.rollout = {name: torch.tensor(values) for name, values in record["rollout"].items()}
        self.epochs = [{name: torch.tensor(values) for name, values in epoch.items()} for epoch in record["epochs"]]
        self.after = {role: record.get(f"{role}_after") for role in ("policy", "value")}
        self.real = self.rollout["padding_mask"] == 0
        self.with_next = self.rollout["padding_mask_p1"] == 0
        self.returns = self.rollout["advantages"] + self.rollout["values"]

    def __getattr__(self, name: str) -> torch.Tensor:
        return self.rollout[name]

    def gae(self, rewards, mask):
        return generalized_advantages(rewards, self.values, mask, gamma=self.options["gamma"], lam=self.options["lam"])

    def token_rewards(self, mask):
        return token_rewards(self.scores, self.kl, mask, beta=self.options["kl_coef"])


def as_rollout(seen: Seen, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """TRL's tensors under the names of GRPO's rollout; `mask` is what losses run over."""
    return {
        "prompt_ids": seen.queries,
        "prompt_mask": torch.ones_like(seen.queries),
        "completion_ids": seen.responses,
        "completion_mask": seen.real.long(),
        "tool_mask": mask.long(),
        "num_items_in_batch": mask.sum(),
        "old_per_token_logps": seen.logprobs.masked_fill(~seen.real, 0.0),
        "advantages": seen.whitened.masked_fill(~seen.real, 0.0),
        "values": seen.values,
        "returns": seen.returns,
    }


def learner(seen: Seen, folder, **options):
    """Our trainer on the models and with the options of TRL's run."""
    pad_is_eos = seen.case == "pad_is_eos"
    rate = FIXTURE["cases"][seen.case]["learning_rate"]
    trainer = ppo_trainer(
        folder,
        model=causal_lm("policy", pad_is_eos=pad_is_eos),
        value_model=scorer("value", pad_is_eos=pad_is_eos),
        processing_class=byte_tokenizer(pad_is_eos=pad_is_eos, words=SIZES["vocab_size"]),
        prompts=[str(i) for i in range(len(seen.queries))],
        per_device_train_batch_size=len(seen.queries),
        max_completion_length=seen.responses.size(1),
        max_steps=len(seen.epochs),
        num_iterations=len(seen.epochs),
        beta=seen.options["kl_coef"],
        kl_estimator=seen.options["kl_estimator"],
        gamma=seen.options["gamma"],
        lam=seen.options["lam"],
        epsilon=seen.options["cliprange"],
        value_clip=seen.options["cliprange_value"],
        value_coef=seen.options["vf_coef"],
        score_scaling=False,
        learning_rate=rate,
        critic_learning_rate=rate,
        optim="sgd",
        lr_scheduler_type="constant",
        max_grad_norm=0.0,  # TRL clips no gradient
        **options,
    )
    trainer.model.train()
    return trainer


def learn(trainer, rollout) -> tuple[torch.Tensor, torch.Tensor]:
    """Train on a rollout; policy and value loss before each step."""
    losses, compute = [], trainer._compute_loss

    def kept(model, inputs):
        losses.append(compute(model, inputs))
        return losses[-1]

    trainer._compute_loss = kept
    trainer._generate_and_score_completions = lambda inputs: rollout
    trainer.rollouts.sampled = 1  # the rollout is there: no warm-up
    trainer.train()
    values = torch.tensor([entry["value_loss"] for entry in trainer.state.log_history if "value_loss" in entry])
    return torch.stack(losses).detach() - trainer.args.value_coef * values, values
