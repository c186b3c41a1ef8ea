"""One run of TRL 1.12's PPO, in an environment that has it: `python -m examples.benchmarks.speed.arm_trl_1_12 TASK.json RESULT.json`.

Started by `ppo_vs_trl_1_12.py`; `work.py` says what a task holds.
"""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from examples.benchmarks.speed.arm import adapter, main, prompts_of, scorer
from examples.benchmarks.speed.meter import BACKWARD, CLOCKS, FORWARD, GENERATION, PASSES, SCORING, Meter


def time_loop(trainer: PPOTrainer, meter: Meter) -> None:
    """Name the parts of TRL's loop, which is one function, by what it calls."""
    reward_model = trainer.reward_model
    generation = meter.timed(ppo_trainer.batch_generation, GENERATION)
    accumulation = trainer.accelerator.accumulate

    def scored(model, *args) -> str:
        return SCORING if model is reward_model else PASSES

    def generate(*args):
        meter.begin_rollout()
        meter.base(PASSES)  # until the first step: log-probabilities, advantages
        return generation(*args)

    def accumulate(*args):
        meter.base(FORWARD)
        return accumulation(*args)

    ppo_trainer.batch_generation = generate
    ppo_trainer.get_reward = meter.timed(ppo_trainer.get_reward, scored)
    trainer.accelerator.accumulate = accumulate
    trainer.accelerator.backward = meter.timed(trainer.accelerator.backward, BACKWARD)
    meter.time_optimizers()


def count_lengths(lengths: list[float]) -> None:
    """Keep the mean length of each batch of completions, end token included, which TRL does not log."""
    truncate = ppo_trainer.truncate_response

    def counting(stop_token_id, pad_token_id, responses):
        truncated = truncate(stop_token_id, pad_token_id, responses)
        lengths.append((truncated != pad_token_id).sum(1).float().mean().item())
        return truncated

    ppo_trainer.truncate_response = counting


def trainer_for(task: dict, meter: Meter) -> PPOTrainer:
    folder = Path(task["folder"])
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "policy", padding_side="left")
    policy = AutoModelForCausalLM.from_pretrained(folder / "policy")
    reward, value = scorer(task, "reward"), scorer(task, "value")
    for model in (policy, reward, value):
        meter.count_passes(model)
    return PPOTrainer(
        config(task),
        tokenizer,
        policy,
        ref_model=None,
        reward_model=reward,
        train_dataset=Dataset.from_list(
            [{"input_ids": tokenizer(prompt)["input_ids"]} for prompt in prompts_of(task)]
        ),
        value_model=value,
        peft_config=adapter(task),
    )


def config(task: dict) -> PPOConfig:
    return PPOConfig(
        output_dir=task["output_dir"],
        per_device_train_batch_size=task["micro_batch"],
        gradient_accumulation_steps=task["batch"] // task["micro_batch"],
        local_rollout_forward_batch_size=task["rollout_batch"],
        total_episodes=task["batch"] * task["rollouts"],
        num_ppo_epochs=task["epochs"],
        response_length=task["new_tokens"],
        stop_token="eos",
        temperature=1.0,
        learning_rate=task["learning_rate"],
        lr_scheduler_type="constant",
        kl_coef=task["beta"],
        seed=task["seed"],
        num_sample_generations=0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        disable_tqdm=True,
    )


def run(task: dict, imports: int) -> dict:
    meter, lengths = Meter(CLOCKS[task["clock"]]), []
    trainer = trainer_for(task, meter)
    time_loop(trainer, meter)
    count_lengths(lengths)
    trainer.train()
    measured = meter.finish(imports=imports)
    if task["save"]:
        trainer.save_model(task["save"])
    logged = [entry for entry in trainer.state.log_history if "objective/scores" in entry]
    return measured | {
        "score": [entry["objective/scores"] for entry in logged],
        "kl": [entry["objective/kl"] for entry in logged],
        "length": lengths,
    }


if __name__ == "__main__":
    main(run)
