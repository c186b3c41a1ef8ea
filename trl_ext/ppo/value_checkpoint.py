"""A critic that is a head on the policy, written as a model of its own: the policy's trunk, and the head as its `score`.

    V(x_1 … x_t) = w · h_t + b        score.weight = w, score.bias = b

transformers' sequence classifiers have no bias: `value_model=`, `LearnedReward` and `AutoModelForTokenClassification` read
it; `AutoModelForSequenceClassification` leaves it out, so that all its values are less by b.
"""

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path

import torch
from peft import PeftModel, TaskType, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from trl_ext.ppo.critic import Critic
from trl_ext.trainer_kit.card_files import CardFacts, write_card
from trl_ext.trainer_kit.loading import whole_loading
from trl_ext.trainer_kit.own_folders import check_own_folder, mark_folder
from trl_ext.trainer_kit.passes import under_adapter
from trl_ext.trainer_kit.saved_adapters import PREFIX

KEPT = "; each checkpoint's ppo_critic.safetensors has the head. "
LABELS = ("id2label", "label2id", "num_labels")
ADAPTER_WEIGHTS = "adapter_model.safetensors"
MARK, OWN = "trl_ext_value_model.json", {"holds": "a value model"}
FILES = re.compile(r"(adapter_)?config\.json|.*\.safetensors(\.index\.json)?|README\.md")
CARD_TEXT = """\
At each token of an answer, what the whole answer is expected to score: the value model (critic) of a run of PPO \
([Proximal Policy Optimization Algorithms](https://huggingface.co/papers/1707.06347)). It is not the policy and writes no \
text. `PPOTrainer(value_model=…)` goes on from it; a sequence classifier's `score` at each token is the value{bias}."""
BIAS = ", less {bias:.6g}, the head's bias, which `AutoModelForTokenClassification` reads, too"


def save_value_model(
    critic: Critic,
    policy: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | PathLike,
    *,
    facts: CardFacts,
) -> None:
    """Write a critic as a model of its own, with its tokenizer and a card.

    Args:
        critic: The critic.
        policy: The policy, whose trunk goes with a head on it.
        tokenizer: The policy's.
        folder: Where it goes: one without another model.
        facts: Of the run, for the card.

    Raises:
        ValueError: If the folder holds another model, the architecture has no sequence classifier with a `score`, or the
            adapter's base has no name.
    """
    call, folder = f"PPOTrainer.save_value_model({str(folder)!r})", Path(folder)
    check_own_folder(folder, MARK, OWN, names=FILES, call=call)
    write = _writer(critic, policy, call)
    mark_folder(folder, MARK, OWN)
    write(folder)
    tokenizer.save_pretrained(folder)
    bias = "" if critic.head is None else BIAS.format(bias=critic.head.bias.item())
    model = critic.own_model or policy
    facts = replace(facts, base=under_adapter(model).config._name_or_path, is_adapter=isinstance(model, PeftModel))
    write_card(folder, "Value model", CARD_TEXT.format(bias=bias), facts, tags=["ppo", "value-model"])


def _writer(critic: Critic, policy: PreTrainedModel | PeftModel, call: str) -> Callable[[Path], None]:
    """What writes the weights, once it is sure that they can be written."""
    if critic.own_model is not None:
        return critic.own_model.save_pretrained
    scorer = _scorer(under_adapter(policy), critic.head, call)
    if not isinstance(policy, PeftModel):
        return scorer.save_pretrained
    if not policy.peft_config[policy.active_adapter].base_model_name_or_path:
        raise ValueError(
            f"{call}: the policy is an adapter on a base without a name, which nobody could load it on{KEPT}Save the base with "
            "save_pretrained and load it from there, before the trainer is made."
        )
    return partial(_write_adapter, policy, critic.head)


def _scorer(base: PreTrainedModel, head: nn.Linear, call: str) -> PreTrainedModel:
    """A sequence classifier of the same architecture, around the same trunk."""
    told = {name: value for name, value in base.config.to_dict().items() if name not in LABELS}
    config = type(base.config).from_dict(told | {"num_labels": 1})
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise ValueError(_no_scorer(call, f"transformers has no sequence classifier of {type(base).__name__}"))
    with torch.device("meta"), whole_loading():
        scorer = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)](config)
    score = dict(scorer.named_children()).get("score")
    if not isinstance(score, nn.Linear) or score.in_features != head.in_features:
        raise ValueError(
            _no_scorer(call, f"{type(scorer).__name__} has no `score` that reads {head.in_features} states")
        )
    trunk = dict(base.named_children()).get(scorer.base_model_prefix)
    if type(trunk) is not type(scorer.base_model):
        raise ValueError(_no_scorer(call, f"{type(scorer).__name__} has another trunk than {type(base).__name__}"))
    setattr(scorer, scorer.base_model_prefix, trunk)
    scorer.score = head
    return scorer


def _no_scorer(call: str, why: str) -> str:
    return f"{call}: {why}, so a head on the policy has no place in one{KEPT}Train with value_model=…, which is saved as it is."


def _write_adapter(policy: PeftModel, head: nn.Linear, folder: Path) -> None:
    """The policy's adapter on the trunk, with the head, as PEFT saves an adapter of a sequence classifier."""
    name = policy.active_adapter
    config = copy.deepcopy(policy.peft_config[name])
    config.task_type, config.inference_mode = TaskType.SEQ_CLS, True
    config.modules_to_save = [*(module for module in config.modules_to_save or [] if module != "lm_head"), "score"]
    weights = get_peft_model_state_dict(policy, adapter_name=name)
    weights = {key: tensor.cpu().contiguous() for key, tensor in weights.items() if ".lm_head." not in key}
    save_file(weights | _head_tensors(head), folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config.save_pretrained(folder)


def _head_tensors(head: nn.Linear) -> dict[str, Tensor]:
    return {f"{PREFIX}score.{name}": tensor.detach().cpu().contiguous() for name, tensor in head.named_parameters()}
