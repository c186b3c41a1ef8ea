"""The causal LM that a reward model was made from: its architecture, asked how it turns states into logits."""

import copy

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from trl_ext.trainer_kit.loading import whole_loading
from trl_ext.trainer_kit.trunk import logits_of


def causal_twin(base: PreTrainedModel) -> PreTrainedModel:
    """The causal LM of the same architecture, without weights."""
    if type(base.config) not in MODEL_FOR_CAUSAL_LM_MAPPING or "score" not in dict(base.named_children()):
        raise ValueError(
            f"ImitationRewardTrainer(model={type(base).__name__}): expected a causal language model whose `score` head "
            "reads the state of every token; this one has no vocabulary head, and no `imitation_head` can make an "
            "encoder predict the next token. Take a decoder, or set imitation_coef=0."
        )
    config = copy.deepcopy(base.config)
    with torch.device("meta"), whole_loading():
        return AutoModelForCausalLM.from_config(config)


def is_tied(twin: PreTrainedModel) -> bool:
    """Whether its vocabulary head is the embedding, and nothing but that."""
    return bool(twin.config.get_text_config().tie_word_embeddings) and twin.get_output_embeddings().bias is None


@torch.no_grad()
def logit_scale(twin: PreTrainedModel) -> float:
    """What the architecture multiplies its logits with, seen by sending known ones through its `forward`."""
    plain = torch.tensor([1.0, -7.0, 100.0])
    probe = nn.utils.skip_init(nn.Linear, twin.get_output_embeddings().in_features, len(plain), bias=False)
    probe.weight.zero_()[:, 0] = plain
    states = torch.zeros(1, 2, probe.in_features)
    states[..., 0] = 1.0
    logits = _logits_of(twin, states, probe)
    scale = logits[0].item() / plain[0].item()
    if not torch.allclose(logits, scale * plain):
        raise ValueError(
            f"ImitationRewardTrainer(model=…): {type(twin).__name__} does more with its logits than to scale them "
            "(softcapping, or layers of its own), which the imitation loss cannot follow, whatever `imitation_head`. "
            "Switch softcapping off in the model's config where it has that option "
            "(`final_logit_softcapping=None`), or set imitation_coef=0."
        )
    return scale


def _logits_of(twin: PreTrainedModel, states: Tensor, probe: nn.Linear) -> Tensor:
    """What `twin` answers at the last position when its trunk returns `states` and its head is `probe`; NaN if nothing."""
    twin.set_output_embeddings(probe)
    nothing = torch.full((probe.out_features,), torch.nan)
    try:
        logits = logits_of(states, twin)[0, -1]
    except (RuntimeError, AttributeError, TypeError):  # it computes with weights that it does not have here
        return nothing
    return logits if logits.shape == nothing.shape and logits.device == nothing.device else nothing
