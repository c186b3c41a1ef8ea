"""A trainer goes on with an adapter by its path: with the tokens that were added, and so its checkpoints."""

from functools import partial
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from resized_case import KINDS, answers, grown_adapter, grown_tokenizer
from shared_case import quiet
from tiny import byte_tokenizer, tiny_llama
from transformers import AutoModelForCausalLM

from trl_ext import ImitationRewardConfig, ImitationRewardTrainer, PPOConfig, PPOTrainer, RAFTConfig, RAFTTrainer
from trl_ext.rewards.reward_models import load_scorer
from trl_ext.trainer_kit.saved_adapters import load_with_adapter
from trl_ext.trainer_kit.trl_versions import reads_bare_head

ROWS = Dataset.from_dict({"prompt": ["a<new1>", "b<new2>"] * 2})
PAIRS = Dataset.from_dict({"prompt": ["a"] * 4, "chosen": ["x<new1>"] * 4, "rejected": ["yy"] * 4})


def length(*, completions, **columns):
    return [float(len(completion)) for completion in completions]


def ppo(folder, model, **changes):
    options = {
        "num_generations": 2,
        "max_completion_length": 4,
        "beta": 0.1,
        "save_strategy": "steps",
        "save_steps": 1,
    }
    return PPOTrainer(model, length, PPOConfig(**quiet(folder, **options | changes)), ROWS)


def raft(folder, model):
    options = {"num_stages": 1, "max_completion_length": 4, "drop_truncated": False, "save_strategy": "epoch"}
    options = {name: value for name, value in quiet(folder, **options).items() if name != "max_steps"}
    return RAFTTrainer(model, length, RAFTConfig(**options), ROWS)


def reward(folder, model):
    options = {"max_length": 64, "save_strategy": "steps", "save_steps": 1}
    return ImitationRewardTrainer(model, ImitationRewardConfig(**quiet(folder, **options)), train_dataset=PAIRS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trainer", [ppo, raft, reward])
def test_from_an_adapter_and_back(tmp_path, trainer, kind):
    task = "SEQ_CLS" if trainer is reward else "CAUSAL_LM"
    path, saved = grown_adapter(tmp_path, kind, task, tied=False)
    run = trainer(tmp_path / "run", str(path))
    assert torch.equal(answers(run.model), answers(saved)) and len(run.processing_class) == len(grown_tokenizer())
    assert {n for n, p in run.model.named_parameters() if p.requires_grad} == {
        n for n, p in saved.named_parameters() if p.requires_grad
    }
    run.train()
    newest = max(Path(tmp_path / "run").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    load = load_scorer if trainer is reward else partial(load_with_adapter, auto=AutoModelForCausalLM, call="")
    assert torch.equal(answers(load(str(newest))), answers(run.model))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_kl_begins_at_zero(tmp_path, kind):
    """TRL copies to its reference all of an adapter but the rows of tokens that are trained one by one."""
    path, _ = grown_adapter(tmp_path, kind, "CAUSAL_LM", tied=False)
    run = ppo(tmp_path / "run", str(path), max_steps=1, save_strategy="no")
    run.train()
    assert next(log["kl"] for log in run.state.log_history if "kl" in log) == pytest.approx(0, abs=1e-6)


@pytest.mark.skipif(not reads_bare_head(), reason="this TRL calls the head")
@pytest.mark.parametrize("trainer", [ppo, raft])
def test_trained_tokens_in_the_head(tmp_path, trainer):
    path, _ = grown_adapter(tmp_path, "trained tokens", "CAUSAL_LM", tied=True)
    with pytest.raises(
        ValueError, match=r"Trainer\(model=PeftModel\): trainable_token_indices of a model whose vocabul"
    ):
        trainer(tmp_path / "run", str(path))


@pytest.mark.parametrize("trainer", [ppo, raft, reward])
def test_an_adapter_that_does_not_fit(tmp_path, trainer):
    path, _ = grown_adapter(tmp_path, "frozen", "SEQ_CLS" if trainer is reward else "CAUSAL_LM", tied=False)
    tiny_llama(byte_tokenizer(), hidden_size=32).save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match=r"adapter' does not fit this base: size mismatch"):
        trainer(tmp_path / "run", str(path))
