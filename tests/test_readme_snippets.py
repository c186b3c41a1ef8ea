"""The README's program on one base runs as it is printed; only its sizes are a test's."""

import functools
import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from encoders import saved_bert
from shared_case import SIZES, lora, quiet
from tiny import byte_tokenizer, tiny_llama
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

import trl_ext
from trl_ext import SharedBase

README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.fixture
def names(tmp_path, monkeypatch):
    """The models that the program asks for by name, in the folder where it runs; a name that is a folder is not a hub's."""
    monkeypatch.chdir(tmp_path)
    base = Path("meta-llama/Llama-2-7b-hf")
    tiny_llama(byte_tokenizer(), **SIZES | {"max_position_embeddings": 512}).save_pretrained(base)
    byte_tokenizer().save_pretrained(base)
    shared = SharedBase.from_pretrained(str(base))
    torch.manual_seed(0)
    shared.policy(lora(lora_dropout=0.5)).save_pretrained("my-sft-adapter")
    shared.reward_model(lora(lora_dropout=0.5)).module.save_pretrained("my-reward-adapter")
    Path("facebook").mkdir()
    Path(saved_bert(tmp_path / "bert")).rename("facebook/contriever")
    rows = {"prompt": ["why?", "say it"] * 8, "query_type": ["open", "closed"] * 8, "reference": ["", "it"] * 8}
    return {"prompts": Dataset.from_dict(rows)}


def program() -> str:
    """The block of code that loads a shared base."""
    return next(block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "SharedBase.from_" in block)


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["PPO", "GRPO", "RLOO"])
def test_one_base_as_printed(names, trainer, monkeypatch):
    """The same program in TRL's own trainers: two names change, and what they do not take is left out."""
    code = program()
    options = quiet("ppo", max_completion_length=8, per_device_train_batch_size=4)
    options.pop("output_dir")
    if trainer == "PPO":
        monkeypatch.setattr(trl_ext, "PPOConfig", functools.partial(trl_ext.PPOConfig, **options), raising=False)
    else:
        code = code.replace("PPOConfig, PPOTrainer, ", "").replace("PPO", trainer)
        code = re.sub(r"\n    value_model=.*", "", code)
        config, cls = {"GRPO": (GRPOConfig, GRPOTrainer), "RLOO": (RLOOConfig, RLOOTrainer)}[trainer]
        names[f"{trainer}Trainer"] = cls
        names[f"{trainer}Config"] = functools.partial(
            config, beta=0.1, num_generations=2, disable_dropout=True, **options
        )
    exec(code, names)
    log = names["trainer"].state.log_history
    kl = [entry["kl"] for entry in log if "kl" in entry]
    scores = [entry["rewards/my-reward-adapter/mean"] for entry in log if "rewards/my-reward-adapter/mean" in entry]
    assert kl[0] == 0.0 and len(scores) == (1 if trainer == "PPO" else 2)  # PPO reads a rollout four times
