"""What takes the place of the options and calls of TRL's own PPO (until 1.12, and the other one until 0.11).

Each raises with what to write instead, because an option that is dropped in silence changes the method.
"""

from transformers import TrainingArguments

RENAMED = {
    # until 1.12
    "cliprange": "epsilon",
    "cliprange_value": "value_clip",
    "kl_coef": "beta",
    "num_ppo_epochs": "num_iterations",
    "response_length": "max_completion_length",
    "vf_coef": "value_coef",
    # until 0.11
    "adap_kl_ctrl": "adaptive_kl",
    "exp_name": "run_name",
    "horizon": "kl_horizon",
    "init_kl_coef": "beta",
    "log_with": "report_to",
    "ppo_epochs": "num_iterations",
    "target": "kl_target",
}

COMPUTED = "left out: it was computed from the others, never chosen"
BATCH = "per_device_train_batch_size × gradient_accumulation_steps, or generation_batch_size for larger rollouts"
FEWER_EPOCHS = "num_iterations: with fewer epochs over a rollout the policy stays nearer to the one that sampled it"
REPLACED = {
    # until 1.12
    "batch_size": BATCH,
    "dataset_num_proc": "left out: prompts are tokenised when they are sampled from",
    "local_batch_size": COMPUTED,
    "local_mini_batch_size": COMPUTED,
    "local_rollout_forward_batch_size": "per_device_train_batch_size, by which rollouts are evaluated too",
    "micro_batch_size": COMPUTED,
    "mini_batch_size": "per_device_train_batch_size × gradient_accumulation_steps, completions per optimizer step",
    "model_adapter_name": "left out: the trainable adapter of the model is the one that learns",
    "num_mini_batches": "steps_per_generation = num_mini_batches × gradient_accumulation_steps, with per_device_train_batch_size / num_mini_batches",
    "num_sample_generations": "log_completions=True",
    "num_total_batches": COMPUTED,
    "ref_adapter_name": "left out: the reference is the policy as it was when the run began, its adapter included",
    "reward_model_path": "PPOTrainer(reward_funcs=…): a path, a model, a function, or a list of them",
    "sft_model_path": "PPOTrainer(model=…)",
    "stop_token": "left out: the tokenizer's end token always ends a completion; stop_tokens names further ones",
    "stop_token_id": "stop_tokens=[tokenizer.convert_ids_to_tokens(stop_token_id)]",
    "total_episodes": "num_train_epochs = total_episodes / number of prompts, or max_steps in optimizer steps",
    "whiten_rewards": "score_scaling, on by default: by all scores of the run so far, not by those of one batch",
    "world_size": COMPUTED,
    # until 0.11
    "accelerator_kwargs": "accelerator_config",
    "backward_batch_size": COMPUTED,
    "compare_steps": "left out",
    "early_stopping": FEWER_EPOCHS,
    "forward_batch_size": "per_device_train_batch_size",
    "global_backward_batch_size": COMPUTED,
    "global_batch_size": COMPUTED,
    "is_encoder_decoder": "left out: only decoders of text are supported",
    "is_peft_model": "left out: give PPOTrainer a PeftModel, or peft_config=…",
    "kl_penalty": "kl_estimator: 'kl' is 'k1'; 'k3' has the lower variance",
    "model_name": "PPOTrainer(model=…)",
    "optimize_cuda_cache": "torch_empty_cache_steps",
    "optimize_device_cache": "torch_empty_cache_steps",
    "project_kwargs": "report_to, and the tracker's own environment variables",
    "push_to_hub_if_best_kwargs": "push_to_hub",
    "query_dataset": "PPOTrainer(train_dataset=…), with a column `prompt`",
    "ratio_threshold": FEWER_EPOCHS,
    "reward_model": "PPOTrainer(reward_funcs=…): a path, a model, a function, or a list of them",
    "steps": "num_train_epochs, or max_steps in optimizer steps",
    "target_kl": FEWER_EPOCHS,
    "task_name": "run_name",
    "tracker_kwargs": "report_to, and the tracker's own environment variables",
    "tracker_project_name": "report_to, and the tracker's own environment variables",
    "use_score_norm": "score_scaling, on by default",
    "use_score_scaling": "score_scaling, on by default",
}

OPTIONS = {name: f"`{new}`" for name, new in RENAMED.items()} | REPLACED  # what each is now

ARGUMENTS = {
    # until 1.12
    "data_collator": "left out: prompts are text or messages, not tokens",
    "ref_model": "left out: the reference is the policy as it was when the run began",
    "reward_model": "reward_funcs=…: a path, a model, a function, or a list of them",
    # until 0.11
    "config": "args=PPOConfig(…)",
    "dataset": "train_dataset=…, with a column `prompt`, text or messages",
    "lr_scheduler": "PPOConfig(lr_scheduler_type=…)",
    "num_shared_layers": "left out: the reference of an adapter shares its base",
    "optimizer": "optimizers=(optimizer, None)",
    "policy": "model=…",
    "ref_policy": "left out: the reference is the policy as it was when the run began",
    "tokenizer": "processing_class=…",
    "training_data_collator": "left out: prompts are text or messages, not tokens",
}

THREE_LINES = """
    score = lambda completions, **columns: [float(len(text)) for text in completions]  # whatever made `rewards`
    trainer = PPOTrainer(model, score, PPOConfig("ppo"), prompts)  # a causal LM or its name; a column `prompt`
    trainer.train()  # samples, scores and learns: there is no loop to write
"""


class OlderOptions:
    """Mixin before a config: an option of TRL's own PPO raises with what it is called here."""

    def __new__(cls, *args, **kwargs):
        older = [name for name in kwargs if name in OPTIONS]
        if older:
            given = ", ".join(f"{name}={kwargs[name]!r}" for name in older)
            raise ValueError(
                f"{cls.__name__}({given}): of TRL's own PPO. "
                f"{_advice({name: OPTIONS[name] for name in older})}. trl_ext/ppo/README.md has all of them."
            )
        return super().__new__(cls)


class OlderCalls:
    """Mixin before a trainer: calls of TRL's own PPO raise with what takes their place."""

    def __new__(cls, *args, **kwargs):
        older = [name for name in kwargs if name in ARGUMENTS]
        if older:
            raise ValueError(
                f"{cls.__name__}({', '.join(f'{name}=…' for name in older)}): of TRL's own PPO. "
                f"{_advice({name: ARGUMENTS[name] for name in older})}. Here it is:{THREE_LINES}"
            )
        if args and isinstance(args[0], TrainingArguments):
            raise ValueError(
                f"{cls.__name__}({type(args[0]).__name__}(…), …): the order of arguments of TRL's own PPO. Expected the "
                f"model, the rewards, the config, the prompts:{THREE_LINES}"
            )
        _refuse_value_head(cls.__name__, [*args[:1], kwargs.get("model")])
        return super().__new__(cls)

    def step(self, *args, **kwargs):
        """Not a method here: `train` is the whole loop."""
        raise ValueError(
            f"{type(self).__name__}.step(queries, responses, rewards): of TRL until 0.11. The trainer samples and calls "
            f"the reward itself:{THREE_LINES}"
        )


def _refuse_value_head(trainer: str, models: list) -> None:
    """Raise a ValueError for a model in TRL's wrapper with a value head."""
    for name in (type(model).__name__ for model in models):
        if name.startswith("AutoModelFor") and name.endswith("WithValueHead"):
            raise ValueError(
                f"{trainer}(model={name}): expected the causal LM itself. Give its `pretrained_model`; value_model=None "
                "adds a linear head, a path or model makes a critic of its own."
            )


def _advice(changes: dict[str, str]) -> str:
    return "; ".join(f"`{name}` is now {new}" for name, new in changes.items())
