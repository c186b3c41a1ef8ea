"""PPO runs whose policy is sharded over two CPU processes: `sharded_case.py FOLDER WHAT '{"kind": "head"}' FSDP2`.

WHAT is a function below; what it returns is written to FOLDER, one file per process.
"""

import json
import math
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from accelerate.state import AcceleratorState
from cpu_sharding import CUT, FSDP2, ZERO2, shard_on_cpu
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file, save_file
from table_case import TABLE, run, saved_and_evaluated, table_trainer, watch_rollouts, weights
from tiny import TRAINING, byte_tokenizer, tiny_llama, tiny_reward_model
from torch import Tensor
from transformers import LlamaForCausalLM, training_args
from trl import RewardConfig, RewardTrainer
from trl.generation import vllm_generation
from two_processes import leave, run_in_two

from trl_ext import ImitationRewardConfig, ImitationRewardTrainer, SharedBase, TransformersGenerator
from trl_ext.ppo.policy import whole_sequences
from trl_ext.trainer_kit import machines
from trl_ext.trainer_kit.sharding import is_in_pieces, whole

# Attention's softmax and the logits' are in float32, whatever the weights are; AdamW magnifies what is left of that.
CLOSE = {"rtol": 0, "atol": 5e-6}


def in_two(
    folder: Path, what: str = "trained", *, case: str = "sharded_case", engine: str = "FSDP2", **options
) -> dict[str, Tensor]:
    """What both processes tell together."""
    folder.mkdir()
    done = run_in_two(Path(__file__).parent / f"{case}.py", folder, what, json.dumps(options), engine)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (load_file(folder / f"process-{process}.safetensors") for process in range(2))
    assert all(torch.equal(first[name], second[name]) for name in learned(first))
    return first | second


def goes_on_alike(folder: Path, *, engine: str, kind: str, full: bool, **options) -> None:
    """What two processes save and evaluate is what one does, without a critic, and a run from their checkpoint ends alike."""
    options |= {"kind": kind, "full": full, "save_strategy": "steps", "save_steps": 1}
    two, halves = folder / "two", {"engine": engine, "per_device_train_batch_size": 4}
    one = run(folder / "one", after=saved_and_evaluated, per_device_train_batch_size=8, **options)
    both = in_two(two, "used", **halves, **options)
    torch.testing.assert_close(both, one, **CLOSE)
    name = "model.safetensors" if full else "adapter_model.safetensors"
    saved, expected = (load_file(each / "saved" / name) for each in (two, folder / "one"))
    torch.testing.assert_close(saved, expected, **CLOSE)
    base = tiny_llama(byte_tokenizer())
    loaded = (
        LlamaForCausalLM.from_pretrained(two / "saved") if full else PeftModel.from_pretrained(base, two / "saved")
    )
    assert not [key for key in loaded.state_dict() if "ppo_critic" in key]
    again = in_two(folder / "again", resume=str(two / "checkpoint-1"), **halves, **options)
    assert all(torch.equal(again[name], both[name]) for name in learned(both))


def learned(told: dict) -> list[str]:
    return [name for name in told if name.startswith(("policy.", "critic."))]


def trained(folder: Path, **options) -> dict[str, Tensor]:
    """Three steps over the table's completions."""
    return run(folder, **options)


def used(folder: Path, **options) -> dict[str, Tensor]:
    """The same, then saved and evaluated."""
    return run(folder, after=saved_and_evaluated, **options)


def sampled(folder: Path, **options) -> dict[str, Tensor]:
    """TRL samples, and the processes' longest completions differ: those of the second all end at once."""
    trainer = table_trainer(folder, rollout_func=None, **options)
    rank, generate = trainer.accelerator.process_index, trainer._generate_single_turn
    lengths = []

    def one_token_or_five(*args, **kwargs):
        trainer.generation_config.max_new_tokens = 1 if rank else 5
        completions, *others = generate(*args, **kwargs)
        lengths.append(max(map(len, completions)))
        return completions, *others

    trainer._generate_single_turn = one_token_or_five
    trainer.train()
    return weights(trainer) | {f"length.{rank}": torch.tensor(lengths)}


def values_first(folder: Path, **options) -> dict[str, Tensor]:
    """The critic is asked before the policy has run once."""
    trainer = table_trainer(folder, beta=0.0, max_steps=1, **options)  # no pass of a reference
    make = trainer._evaluate_policy

    def values_before(rollout):
        tokens = whole_sequences(rollout)
        shape = (*tokens["input_ids"].shape, trainer.model.config.hidden_size)
        with pytest.raises(RuntimeError, match="the policy must run once before its critic"):
            trainer.critic.values(1, hidden_states=torch.zeros(shape), **tokens)
        return make(rollout)

    trainer._evaluate_policy = values_before
    trainer.train()
    return weights(trainer)


def in_16_bits(folder: Path, **options) -> dict[str, Tensor]:
    """Of passes in bf16 neither log π nor V is rounded to it: as accelerate would have it, to a 1/32 at 5."""
    trainer = table_trainer(folder, max_steps=1, bf16=True, **options)
    rollouts = watch_rollouts(trainer)
    trainer.train()
    seen = torch.cat([tensor for name, tensor in rollouts.items() if name.endswith(("values", "old_per_token_logps"))])
    seen = seen[seen != 0]
    assert (seen == seen.bfloat16()).float().mean() < 0.1
    return {}


def refused(folder: Path, **options) -> dict[str, Tensor]:
    """What a trainer says that cannot do it while it is sharded."""
    trainer = table_trainer(folder, **options)
    for ask in (trainer.evaluate, trainer.predict):
        with pytest.raises(ValueError, match=r"evaluate\(\) or predict\(\) under FSDP2, before train"):
            ask(trainer.train_dataset)
    with pytest.raises(ValueError, match=r"save_value_model\('x'\) under FSDP2: the trunk is in pieces"):
        trainer.save_value_model("x")
    return {}


def own_disks(folder: Path, **options) -> dict[str, Tensor]:
    """Each process on a machine of its own, where it would leave a part of each checkpoint."""
    os.environ.update({"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"})
    machines.VISIBLE_WITHIN = 0.2
    own = folder / f"machine-{os.environ['RANK']}"
    own.mkdir()
    os.chdir(own)
    for told in ({"save_strategy": "steps"}, {"save_on_each_node": True}):
        with pytest.raises(
            ValueError, match=r"does not see .* all processes write .*on a disk that all machines share\.$"
        ):
            table_trainer("run", max_steps=1, **told, **options).train()
    os.chdir(folder)
    return {}


class Server:
    """Stands in for TRL's client of a vLLM server: takes down what it is sent, and answers with the table's completions."""

    sent: ClassVar[list[dict[str, Tensor]]] = []

    def __init__(self, **options):
        pass

    def init_communicator(self, device):
        pass

    def get_server_info(self):
        return {"model_config": {"logprobs_mode": "processed_logprobs"}}

    def update_named_params(self, metadata, weights):
        weights = {name: tensor.detach().clone() for name, tensor in weights}
        assert [(name, list(tensor.shape)) for name, tensor in weights.items()] == [(n, s) for n, _, s in metadata]
        self.sent.append(weights)

    def reset_prefix_cache(self):
        pass

    def generate(self, *, prompts, **options):
        completions = [byte_tokenizer()(TABLE[byte_tokenizer().decode(ids)])["input_ids"] for ids in prompts]
        log_probs = [[[-5.0]] * len(ids) for ids in completions]
        return {"prompt_ids": prompts, "completion_ids": completions, "logprobs": log_probs}


def synced(folder: Path, **options) -> dict[str, Tensor]:
    """What TRL sends a vLLM server before each rollout, and the weights in the end."""
    vllm_generation.is_vllm_available, vllm_generation.VLLMClient = lambda: True, Server
    told = run(folder, rollout_func=None, use_vllm=True, vllm_mode="server", **options)
    return told | {f"sent.{i}.{name}": tensor for i, sent in enumerate(Server.sent) for name, tensor in sent.items()}


SETTINGS = {
    "FSDP_STATE_DICT_TYPE": ("SHARDED_STATE_DICT", "save_model would write no weights. Set it to FULL_STATE_DICT"),
    "FSDP_AUTO_WRAP_POLICY": ("NO_WRAP", "the critic would be in one unit with the policy"),
    "FSDP_CPU_RAM_EFFICIENT_LOADING": ("true", "each process has read, and but one would have read it"),
    "FSDP_OFFLOAD_PARAMS": ("true", "fsdp_offload_params=true: it was never tried"),
    "FSDP_ACTIVATION_CHECKPOINTING": ("true", r"fsdp_activation_checkpointing.*gradient_checkpointing=True"),
    "FSDP_VERSION": ("1", "PPOTrainer runs on one device.*, not under FSDP1: its critic"),
}
OPTIONS = {
    "torch_compile": "torch_compile=True: it was never tried",
    "use_transformers_continuous_batching": "it samples with weights that are not whole",
}


def refused_to_begin(folder: Path) -> dict[str, Tensor]:
    """What each trainer of the package says where accelerate, and not its config, asks for what it cannot do."""
    for name, (value, message) in SETTINGS.items():
        before = FSDP2 | {"FSDP_VERSION": "2"} | ({"FSDP_RESHARD_AFTER_FORWARD": "FULL_SHARD"} if value == "1" else {})
        os.environ.update(before | {name: value})
        with pytest.raises(ValueError, match=message):
            table_trainer(folder)
    os.environ.update(FSDP2)
    for name, message in OPTIONS.items():
        with pytest.raises(ValueError, match=message):
            table_trainer(folder, **{name: True}, rollout_func=None)
    with pytest.raises(ValueError, match=r"a generator is given the whole model.*Let TRL sample"):
        table_trainer(folder, generator=TransformersGenerator(), rollout_func=None)
    base = SharedBase(tiny_llama(byte_tokenizer()), byte_tokenizer())
    role = base.policy()
    with pytest.raises(
        ValueError, match=r"SharedBase with several roles runs on .*, not under FSDP2: it cuts the base"
    ):
        base.value_model()
    assert base.roles() == {"policy policy": role}
    return {}


def refused_with_roles(folder: Path) -> dict[str, Tensor]:
    """Of a base whose roles were there before an engine was asked for: by trainers of ours at once, by TRL's at the first pass."""
    asked = {
        name: os.environ.pop(name)
        for name in (*FSDP2, *ZERO2)
        if name.startswith(("ACCELERATE_USE", "FSDP")) and name in os.environ
    }
    base = SharedBase(tiny_llama(byte_tokenizer()), byte_tokenizer())
    policy, reward = base.policy(), base.reward_model()
    before = [parameter.clone() for parameter in base.model.parameters()]
    os.environ.update(asked)
    said = pytest.raises(
        ValueError, match=r"SharedBase with several roles runs on one device.*, not under .*: it cuts the base"
    )
    with said:
        table_trainer(folder, model=policy, reward_funcs=reward)
    pairs = Dataset.from_list([{"prompt": "why?", "chosen": "because", "rejected": "no"}] * 4)
    options = TRAINING | {"output_dir": str(folder), "max_steps": 1}
    with said:
        ImitationRewardTrainer(
            reward.module,
            ImitationRewardConfig(**options),
            train_dataset=pairs,
            processing_class=byte_tokenizer(),
            imitation_head=torch.nn.Embedding(*base.model.get_input_embeddings().weight.shape),
        )
    assert all(map(torch.equal, base.model.parameters(), before))  # nobody has cut it yet
    trainer = RewardTrainer(
        reward.module, RewardConfig(**options), train_dataset=pairs, processing_class=byte_tokenizer()
    )
    with said:
        trainer.train()
    return {}


# Under DeepSpeed


def halved(folder: Path, **options) -> dict[str, Tensor]:
    """In bfloat16, which transformers believes that no CPU has: a weight of the critic's, and its first values."""
    training_args.is_torch_bf16_gpu_available = lambda: True
    trainer = table_trainer(folder, full=True, bf16=True, **options)
    values, make = [], trainer._evaluate_policy
    trainer._evaluate_policy = lambda rollout: values.append(make(rollout)) or values[-1]
    trainer.train()
    return {"weight": whole(trainer.critic.parameters()[0]).detach(), "values": values[-1][1]}


def from_paths(folder: Path, **options) -> dict[str, Tensor]:
    """Policy, value model and reward by their paths, which transformers would cut as it loads them; a second trainer too."""
    tokenizer, paths = byte_tokenizer(), [folder / os.environ["RANK"] / name for name in ("policy", "reward")]
    for path, model in zip(paths, (tiny_llama(tokenizer), tiny_reward_model(tokenizer)), strict=True):
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
    policy, reward = map(str, paths)
    for name in ("first", "second"):
        trainer = table_trainer(
            folder / name, model=policy, value_model=reward, reward_funcs=reward, full=True, max_steps=1, **options
        )
        assert not any(map(is_in_pieces, trainer.model.parameters()))
        trainer.train()
        is_cut = trainer.accelerator.state.deepspeed_plugin.zero_stage == 3
        assert {parameter.numel() == 0 for parameter in trainer.model.parameters()} == {is_cut}
        trainer.save_value_model(folder / name / "value")
        trainer.accelerator.wait_for_everyone()
        saved = load_file(folder / name / "value" / "model.safetensors")
        assert min(tensor.numel() for tensor in saved.values()) == 16
    with pytest.raises(
        (ValueError, RuntimeError), match=r"save_value_model.*which this run did not write"
    ):  # in all processes
        trainer.save_value_model(policy)
    return {}


def stopped(folder: Path, **options) -> dict[str, Tensor]:
    """By a loss that is not finite in one process."""
    trainer = table_trainer(folder, **options)
    loss = trainer._compute_loss
    factor = math.nan if trainer.accelerator.process_index else 1.0
    trainer._compute_loss = lambda *args: loss(*args) * factor
    with pytest.raises(FloatingPointError, match=r"step 1 was made by DeepSpeed, .*the loss is nan in process 1 of 2"):
        trainer.train()
    return {}


def refused_by_zero(folder: Path, **options) -> dict[str, Tensor]:
    """What a trainer says that cannot do it under DeepSpeed, of models that were cut before, and of other checkpoints."""
    said = pytest.warns(UserWarning, match="clips policy and critic by one norm")
    policy = tiny_llama(byte_tokenizer()).bfloat16()
    with nullcontext() if int(os.environ["RANK"]) else said:
        trainer = table_trainer(folder / "a", save_strategy="steps", save_steps=1, max_steps=2, **options)
    with pytest.raises(ValueError, match=r"evaluate\(\) or predict\(\) under DeepSpeed ZeRO-.*, before train"):
        trainer.evaluate(trainer.train_dataset)
    trainer.train()
    with pytest.raises(ValueError, match=r"train\(.*under DeepSpeed, after it has trained.*Make another trainer"):
        trainer.train()
    checkpoint, stage = folder / "a" / "checkpoint-1", trainer.accelerator.state.deepspeed_plugin.zero_stage
    if trainer.accelerator.is_main_process:
        next(checkpoint.glob("*/*zero_pp_rank_1_*optim_states.pt")).unlink()
    trainer.accelerator.wait_for_everyone()
    again = table_trainer(folder / "b", **options)
    with pytest.raises(ValueError, match=r"there is no .*zero_pp_rank_1_.*optim_states.pt in it"):
        again.train(resume_from_checkpoint=str(checkpoint))
    if stage == 3:
        with pytest.raises(ValueError, match=r"bf16=False and trained tensors in torch.bfloat16: it takes one dtype"):
            table_trainer(folder, full=True, model=policy)
        cut = LlamaForCausalLM._from_config(tiny_llama(byte_tokenizer()).config)
        for name in ("model", "value_model", "reward_funcs"):
            with pytest.raises(ValueError, match=rf"{name}=Llama.*has cut it while it was loaded.*Give its path"):
                table_trainer(folder, **{name: cut})
    return {}


ZERO = {
    "optimizer": ({"optimizer": {"type": "AdamW", "params": {"lr": "auto"}}}, "an `optimizer` in its config"),
    "scheduler": ({"scheduler": {"type": "WarmupLR", "params": {}}}, "a `scheduler` in its config"),
    "clipping": ({"gradient_clipping": 0.5}, "gradient_clipping=0.5 in its config, .*Set gradient_clipping to auto"),
    "offloading": ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}, "with offloading"),
    "unsaved": (
        {"zero_optimization": {"stage": 3}},
        "zero3_save_16bit_model=false: save_model would write no weights",
    ),
    "none": ({"zero_optimization": {"stage": 0}}, "PPOTrainer runs on one device.*, not under DeepSpeed ZeRO-0"),
}
ZERO_OPTIONS = {
    "critic_warmup_rollouts": (1, "critic_warmup_rollouts=1: it steps before the policy can be told to rest"),
    "use_transformers_continuous_batching": (True, "it samples with weights that are not whole"),
}


def refused_to_begin_by_zero(folder: Path) -> dict[str, Tensor]:
    """What a trainer says where DeepSpeed's config, or its own, asks for what it cannot do."""
    for changes, message in ZERO.values():
        os.environ["ACCELERATE_DEEPSPEED_CONFIG_FILE"] = json.dumps(
            CUT | {"zero_optimization": {"stage": 2}} | changes
        )
        AcceleratorState._reset_state()
        with pytest.raises(ValueError, match=message):
            table_trainer(folder)
    os.environ["ACCELERATE_DEEPSPEED_CONFIG_FILE"] = json.dumps(CUT)
    AcceleratorState._reset_state()
    for name, (value, message) in ZERO_OPTIONS.items():
        with pytest.raises(ValueError, match=message):
            table_trainer(folder, **{name: value}, rollout_func=None)
    return {}


if __name__ == "__main__":
    torch.set_num_threads(1)
    target, what, options = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    shard_on_cpu(engine=sys.argv[4])
    results = globals()[what](target, **options)
    save_file(results, target / f"process-{torch.distributed.get_rank()}.safetensors")
    leave()
