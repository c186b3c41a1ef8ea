"""One run of trl_ext's PPO, or of this TRL's GRPO on the same work: `python -m examples.benchmarks.speed.arm_trl_ext TASK.json RESULT.json`.

Started by `ppo_vs_trl_1_12.py`; `work.py` says what a task holds.
"""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from examples.benchmarks.speed.arm import adapter, main, prompts_of, scorer
from examples.benchmarks.speed.meter import BACKWARD, CLOCKS, FORWARD, GENERATION, PASSES, SCORING, Meter
from trl_ext import LearnedReward, PPOConfig, PPOTrainer, TransformersGenerator, vllm_rollouts

TRL_1_12 = {"score_scaling": False, "max_grad_norm": 0.0}  # what its PPO does not do


class Metered:
    """Mixin before a trainer on top of GRPO's: with a clock in it."""

    meter: Meter

    def _generate_and_score_completions(self, inputs):
        self.meter.begin_rollout()
        with self.meter.phase(PASSES):
            return super()._generate_and_score_completions(inputs)

    def _generate(self, prompts):
        with self.meter.phase(GENERATION):
            return super()._generate(prompts)

    def _calculate_rewards(self, *args):
        with self.meter.phase(SCORING):
            return super()._calculate_rewards(*args)


class MeteredPPOTrainer(Metered, PPOTrainer):
    """PPO with a clock."""


class MeteredGRPOTrainer(Metered, GRPOTrainer):
    """TRL's GRPO with a clock."""


def trainer_for(task: dict, meter: Meter) -> GRPOTrainer:
    folder = Path(task["folder"])
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "policy")
    policy = AutoModelForCausalLM.from_pretrained(folder / "policy")
    names = ("reward", "value") if task["critic"] == "model" else ("reward",)
    reward, *value = (scorer(task, name) for name in names)
    for model in (policy, reward, *value):
        meter.count_passes(model)
        model.config.name_or_path = ""  # there, transformers would find a tokenizer that the folder does not have
    is_ppo, sampler = task["critic"] != "none", TransformersGenerator() if task["sampler"] == "ours" else None
    own = {"generator": sampler, "value_model": value[0] if value else None}
    if not is_ppo:
        own = {"rollout_func": None if sampler is None else vllm_rollouts(sampler)}
    trainer = (MeteredPPOTrainer if is_ppo else MeteredGRPOTrainer)(
        policy,
        LearnedReward(reward, tokenizer, batch_size=task["micro_batch"]),
        config(task),
        Dataset.from_dict({"prompt": prompts_of(task)}),
        processing_class=tokenizer,
        peft_config=adapter(task),
        **own,
    )
    trainer.meter = meter
    trainer.accelerator.backward = meter.timed(trainer.accelerator.backward, BACKWARD)
    meter.base(FORWARD)
    meter.time_optimizers()
    return trainer


def config(task: dict) -> GRPOConfig:
    groups = {"num_generations": min(8, task["batch"])}
    more = groups if task["critic"] == "none" else TRL_1_12 if task["as_trl_1_12"] else {}
    return (GRPOConfig if task["critic"] == "none" else PPOConfig)(
        output_dir=task["output_dir"],
        per_device_train_batch_size=task["micro_batch"],
        gradient_accumulation_steps=task["batch"] // task["micro_batch"],
        max_steps=task["rollouts"] * task["epochs"],
        num_iterations=task["epochs"],
        max_completion_length=task["new_tokens"],
        learning_rate=task["learning_rate"],
        lr_scheduler_type="constant",
        beta=task["beta"],
        seed=task["seed"],
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        **more,
    )


def run(task: dict, imports: int) -> dict:
    meter = Meter(CLOCKS[task["clock"]])
    trainer = trainer_for(task, meter)
    trainer.train()
    measured = meter.finish(imports=imports)
    if task["save"]:
        trainer.save_model(task["save"])
    score, kl = ("reward", "kl") if task["critic"] == "none" else ("score", "kl_per_completion")
    logged = [entry for entry in trainer.state.log_history if score in entry]
    return measured | {
        "score": [entry[score] for entry in logged],
        "kl": [entry[kl] for entry in logged],
        "length": [entry["completions/mean_length"] for entry in logged],
    }


if __name__ == "__main__":
    main(run)
