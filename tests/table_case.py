"""A PPO run whose completions come from a table, so that one process and two have the same; in float64.

    accelerate launch … tests/table_case.py FOLDER '{"kind": "head"}'

writes what `run` returns to FOLDER, one file per process. AdamW divides small gradients by their size, so rounding in
32 bits would be as large as a step.
"""

import json
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from ppo_case import even_letters, ppo_trainer
from safetensors.torch import save_file
from tiny import byte_tokenizer, tiny_llama, tiny_reward_model
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from two_processes import leave

from trl_ext import PPOTrainer
from trl_ext.trainer_kit.sharding import whole

# Lengths differ, so that the halves of a batch have unequal numbers of tokens; two rows end themselves.
TABLE = {
    "say it": "ok<eos>", "why?": "nobody", "tell me more": "a", "go": "bdf", "who": "me<eos>", "when": "noon",
    "where to": "hh", "how": "slowly", "and": "so", "no": "yes<eos>", "what is": "it", "is it": "maybe it is", "if": "b",
    "more": "less", "then": "what?", "for whom": "us all<eos>",
}  # fmt: skip


def completions_of(prompts: list[str], trainer) -> dict:
    tokenizer = byte_tokenizer()
    ids = [tokenizer(text)["input_ids"] for text in (*prompts, *(TABLE[prompt] for prompt in prompts))]
    return {"prompt_ids": ids[: len(prompts)], "completion_ids": ids[len(prompts) :], "logprobs": None}


def completions_with_log_probs(prompts: list[str], trainer) -> dict:
    """The same, with log-probabilities; None for some rows, and zeros for one."""
    answer = completions_of(prompts, trainer)
    rows = [[-5.0 - 0.2 * i for i in range(len(ids))] for ids in answer["completion_ids"]]
    unlike = {"when": None, "how": None, "and": None, "go": [0.0] * 3}
    return answer | {"logprobs": [unlike.get(prompt, row) for prompt, row in zip(prompts, rows, strict=True)]}


def even_unless_short(completions, **columns):
    """None for one row, which the process that has it must leave out of all means."""
    return [None if text == "a" else score for text, score in zip(completions, even_letters(completions), strict=True)]


def adapter(seed: int, task_type: str, model, whole: list[str] | None = None):
    """A LoRA that is not the identity, so that A and B both move; `whole`: what is trained beside."""
    torch.manual_seed(seed)
    modules = {"target_modules": ["q_proj", "v_proj"], "modules_to_save": whole}
    config = LoraConfig(r=4, init_lora_weights=False, task_type=task_type, **modules)
    return get_peft_model(model, config)


def table_trainer(
    folder: str | Path,
    *,
    kind: str = "head",
    full: bool = False,
    whole: list[str] | None = None,
    with_log_probs: bool = False,
    **options,
) -> PPOTrainer:
    """Three steps over completions from the table.

    Args:
        folder: For outputs.
        kind: Of critic: "head", or "model", which has an adapter too.
        full: Whether all weights are trained, without adapters.
        whole: Parts of the policy that are trained as a whole, beside its adapter.
        with_log_probs: Whether the table says how probable its tokens are.
        options: Of PPOConfig or PPOTrainer.
    """
    tokenizer = byte_tokenizer()
    adapted = (lambda seed, task_type, model, whole=None: model) if full else adapter
    text = Dataset.from_dict({"text": ["the first line", "a second", "and", "one more to read"]})
    settings = {
        "model": adapted(0, "CAUSAL_LM", tiny_llama(tokenizer), whole),
        "value_model": adapted(1, "SEQ_CLS", tiny_reward_model(tokenizer)) if kind == "model" else None,
        "reward_funcs": even_unless_short,
        "prompts": [*TABLE],
        "rollout_func": completions_with_log_probs if with_log_probs else completions_of,
        "ptx_dataset": text if options.get("ptx_coef") else None,
        "per_device_train_batch_size": 8,
        "max_steps": 3,
        "num_iterations": 2,
        "beta": 0.1,
    }
    return ppo_trainer(folder, **settings | options)


def run(folder: str | Path, *, resume: str | None = None, after=lambda trainer: {}, **options) -> dict[str, Tensor]:
    """Train in float64: each rollout's tensors by row of the table, and the trained weights of policy and critic.

    Args:
        folder: For outputs.
        resume: The checkpoint to go on from.
        after: What more to do, and to tell, when the trainer has trained.
        options: Of `table_trainer`.
    """
    with default_dtype(torch.float64):
        trainer = table_trainer(folder, **options)
        rollouts = watch_rollouts(trainer)
        trainer.train(resume_from_checkpoint=resume)
        told = after(trainer)
    assert (isinstance(trainer.model, FSDPModule) or trainer.is_deepspeed_enabled) == trainer.critic.is_inside
    return rollouts | weights(trainer) | told


def saved_and_evaluated(trainer: PPOTrainer) -> dict[str, Tensor]:
    """Saves the policy; tells what an evaluation says of the table's completions."""
    trainer.save_model(Path(trainer.args.output_dir, "saved"))
    said = trainer.evaluate(Dataset.from_dict({"prompt": [*TABLE][:5]}))  # which do not come out even
    names = ("eval_loss", "eval_score", "eval_kl", "eval_explained_variance", "eval_value_loss")
    said |= {name: value for name, value in trainer.state.log_history[-1].items() if name in names}
    return {name: torch.tensor(said[name], dtype=torch.float64) for name in names}


def weights(trainer: PPOTrainer) -> dict[str, Tensor]:
    """What has been trained."""
    learned = [(name, p) for name, p in trainer.model.named_parameters() if p.requires_grad]
    policy = [(f"policy.{name}", p) for name, p in learned if not name.startswith("ppo_critic.")]
    critic = [(f"critic.{name}", p) for name, p in trainer.critic._named()]
    return {name: whole(parameter).detach().clone() for name, parameter in [*policy, *critic]}


@contextmanager
def default_dtype(dtype: torch.dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def watch_rollouts(trainer) -> dict[str, Tensor]:
    """Fills with `<rollout>.<prompt>.<name>`, own tokens only, as the trainer samples."""
    seen, make = {}, trainer._generate_and_score_completions

    def watched(inputs):
        rollout, number = make(inputs), trainer.rollouts.sampled if trainer.model.training else "evaluated"
        for row, (example, mask) in enumerate(zip(inputs, rollout["completion_mask"].bool(), strict=True)):
            if not (trainer.model.training or rollout["tool_mask"][row].any()):
                continue  # in an evaluation, a row that another process counts
            for name in ("advantages", "returns", "values", "old_per_token_logps"):
                seen[f"{number}.{example['prompt']}.{name}"] = rollout[name][row][mask].clone()
        return rollout

    trainer._generate_and_score_completions = watched
    return seen


if __name__ == "__main__":
    torch.set_num_threads(1)
    target = Path(sys.argv[1])
    results = run(target, ddp_backend="gloo", use_cpu=True, **json.loads(sys.argv[2]))
    save_file(results, target / f"process-{torch.distributed.get_rank()}.safetensors")
    leave()
