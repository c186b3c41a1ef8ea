"""Random models, data and roles of one combination of `plan_error.py`."""

import random
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from examples.benchmarks.common.made_models import FIRST_WORD, word_tokenizer
from examples.benchmarks.memory.plan_cases import SIZES, VOCABULARY, Case
from trl_ext import SharedBase

PROMPTS = 32  # rows of each data set


def saved_model(case: Case, folder: Path) -> str:
    """A random model, written to a folder."""
    torch.manual_seed(0)
    tokenizer = word_tokenizer(VOCABULARY[case.size])
    config = AutoConfig.for_model(
        case.size.partition("-")[0],
        **SIZES[case.size],
        vocab_size=VOCABULARY[case.size],
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, case.settings["dtype"]))
    model.save_pretrained(folder / "model")
    return str(folder / "model")


def texts(lengths: list[int], seed: int) -> list[str]:
    source = random.Random(seed)
    return [" ".join(f"w{source.randrange(FIRST_WORD, 400)}" for _ in range(length)) for length in lengths]


def prompts(case: Case) -> list[str]:
    """Of the longest length but for every fourth, which is padded."""
    longest = case.settings["prompt_length"]
    return texts([longest - 3 * (i % 4 == 3) for i in range(PROMPTS)], seed=0)


def dataset(case: Case) -> Dataset:
    """What the method reads; an end token is added to completions."""
    columns = {"prompt": prompts(case)}
    length = case.settings["completion_length"] - 1
    if case.settings["method"] == "sft":
        columns["completion"] = [" " + text for text in texts([length] * PROMPTS, seed=1)]
    if case.settings["method"] == "reward":
        columns["chosen"] = [" " + text for text in texts([length] * PROMPTS, seed=1)]
        columns["rejected"] = [" " + text for text in texts([length] * PROMPTS, seed=2)]
    return Dataset.from_dict(columns)


class Roles:
    """The models of a run, over one base or each with its own.

    Args:
        case: The run.
        path: Of the saved model.
        device: Where they are.
    """

    def __init__(self, case: Case, path: str, device: str):
        self.case, self.path, self.device = case, path, device
        self.rank, self.dtype = case.settings["lora"], getattr(torch, case.settings["dtype"])
        self.shared = case.settings.get("shared", True)
        self.made: list[nn.Module] = []
        if self.shared:
            tokenizer, bits = word_tokenizer(VOCABULARY[case.size]), case.settings.get("bits")
            self.base = SharedBase.from_pretrained(path, bits=bits, dtype=self.dtype, tokenizer=tokenizer)
            self.made.append(self.base.model)

    def policy(self) -> nn.Module:
        if self.shared:
            return self.base.policy(self.lora())
        return AutoModelForCausalLM.from_pretrained(self.path, dtype=self.dtype).to(self.device)

    def scorer(self, *, trains: bool) -> nn.Module:
        """A reward or value model."""
        self.made.append(self._scorer(trains))
        self.made[-1].config._name_or_path = ""  # so that nobody looks there for a tokenizer
        return self.made[-1]

    def _scorer(self, trains: bool) -> nn.Module:
        if self.shared:
            return self.base.value_model(self.lora()) if trains else self.base.reward_model(self.lora()).module
        model = AutoModelForSequenceClassification.from_pretrained(self.path, num_labels=1, dtype=self.dtype)
        if self.rank:
            model = get_peft_model(model, self.lora("SEQ_CLS"))
        return model.to(self.device) if trains else model.to(self.device).requires_grad_(False)

    def lora(self, task: str = "CAUSAL_LM") -> LoraConfig:
        return LoraConfig(r=self.rank, target_modules="all-linear", task_type=task)

    def policy_options(self) -> dict:
        """The policy, with an adapter to be made by the trainer where it has none."""
        adapter = self.lora() if self.rank and not self.shared else None
        return {"model": self.policy(), "peft_config": adapter}
