import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from tiny import tiny_llama, tiny_reward_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MiniCPM3Config,
    MixtralConfig,
    OPTConfig,
    PhiConfig,
    Qwen2Config,
)

from trl_ext.reward_modeling.imitation_loss import completion_nll, completion_targets
from trl_ext.reward_modeling.vocabulary_head import imitation_head_of, vocabulary_head

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 64,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT_SIZES = {
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "vocab_size": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MLA_SIZES = SIZES | {
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
}
FAMILIES = [
    LlamaConfig(**SIZES),
    LlamaConfig(**SIZES, tie_word_embeddings=True),
    Qwen2Config(**SIZES),
    MixtralConfig(**SIZES, num_local_experts=2),
    Gemma3TextConfig(**SIZES),
    PhiConfig(**SIZES),  # bias
    GPTJConfig(**GPT_SIZES, rotary_dim=4),  # bias
    GPT2Config(**GPT_SIZES),  # tied
    GPTNeoXConfig(**SIZES),  # another name on disk
    OPTConfig(**SIZES, ffn_dim=32, word_embed_proj_dim=8),  # projected states
    MiniCPM3Config(**MLA_SIZES, dim_model_base=4),  # scaled logits
]


def saved(config, folder) -> nn.Module:
    """A causal LM of that family with a head and scale of its own, in several files."""
    torch.manual_seed(0)
    config.initializer_range = 0.5
    causal = AutoModelForCausalLM.from_config(config).eval()
    if causal.get_output_embeddings().bias is not None:
        nn.init.normal_(causal.get_output_embeddings().bias)
    causal.save_pretrained(folder, max_shard_size="6KB")
    return causal


def read_states(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    states = []
    model.score.register_forward_pre_hook(lambda module, args: states.append(args[0]))
    model(input_ids=ids)
    return states[0]


@pytest.mark.parametrize("config", FAMILIES, ids=lambda config: type(config).__name__)
def test_reads_what_the_causal_model_would_say(config, tmp_path):
    """The head on the reward model's states gives the loss that the causal LM itself computes."""
    causal = saved(config, tmp_path)
    reward_model = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1).eval()
    ids = torch.randint(3, 64, (2, 7))
    targets = completion_targets(torch.ones_like(ids), torch.tensor([1, 1]))
    with torch.no_grad():
        nll = completion_nll(read_states(reward_model, ids), ids, targets, vocabulary_head(reward_model))
        expected = causal(input_ids=ids, labels=ids).loss
    torch.testing.assert_close(nll.mean(), expected)


def test_softcapping_is_refused(tmp_path):
    model = AutoModelForSequenceClassification.from_config(Gemma2Config(**SIZES, num_labels=1))
    with pytest.raises(
        ValueError, match=r"Gemma2ForCausalLM does more with its logits .* `imitation_head`.*softcapping=None"
    ):
        vocabulary_head(model)
    model.config.final_logit_softcapping = None
    assert vocabulary_head(model).size == 64


def test_tied_head_is_the_embedding(tokenizer):
    model = tiny_reward_model(tokenizer, tie_word_embeddings=True)
    assert vocabulary_head(model).weight is model.get_input_embeddings().weight


def test_an_embedding_that_is_cut_into_pieces(tokenizer):
    """Under FSDP and ZeRO-3; a head of its own is whole."""
    model = tiny_reward_model(tokenizer, tie_word_embeddings=True)
    own = nn.Linear(16, len(tokenizer), bias=False)
    assert imitation_head_of(model, own, tokenizer, revision=None, is_cut=True).size == len(tokenizer)
    for origin, copied in (("", r"copy\.deepcopy\(model\.get_input_embeddings\(\)\)"), ("here", "'here'")):
        model.config._name_or_path = origin
        with pytest.raises(ValueError, match=f"cut into pieces. Pass imitation_head={copied} to read"):
            imitation_head_of(model, None, tokenizer, revision=None, is_cut=True)


def test_a_head_in_64_bits(tokenizer):
    model = tiny_reward_model(tokenizer, tie_word_embeddings=True).double()
    assert vocabulary_head(model).weight.dtype == torch.float64


def test_untied_head_comes_from_the_checkpoint_in_its_dtype(tokenizer, tmp_path):
    causal = tiny_llama(tokenizer).bfloat16()
    causal.save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1, dtype=torch.float32)
    head = vocabulary_head(model)
    assert torch.equal(head.weight, causal.lm_head.weight) and head.weight.dtype == torch.bfloat16
    assert not head.is_embedding and not head.weight.requires_grad


def test_head_can_be_given(tokenizer, tmp_path):
    causal, model = tiny_llama(tokenizer), tiny_reward_model(tokenizer)
    causal.save_pretrained(tmp_path)
    assert torch.equal(vocabulary_head(model, causal.lm_head).weight, causal.lm_head.weight)
    assert torch.equal(vocabulary_head(model, str(tmp_path)).weight, causal.lm_head.weight)
    tied = tiny_reward_model(tokenizer, seed=1, tie_word_embeddings=True)
    assert torch.equal(vocabulary_head(tied, str(tmp_path)).weight, causal.lm_head.weight)  # rather than its own


def lora(**changes) -> LoraConfig:
    return LoraConfig(task_type=TaskType.SEQ_CLS, target_modules=["q_proj"], **changes)


@pytest.mark.parametrize(
    "config",
    [
        lora(),
        lora(modules_to_save=["embed_tokens"]),
        lora(trainable_token_indices=[3]),
        LoraConfig(task_type=TaskType.SEQ_CLS, target_modules=["embed_tokens"]),
    ],
    ids=["frozen", "copied", "tokens", "adapted"],
)
def test_adapters_leave_the_pretrained_embedding(tokenizer, config):
    model = tiny_reward_model(tokenizer, tie_word_embeddings=True)
    pretrained = model.get_input_embeddings().weight
    adapted = get_peft_model(model, config)
    head = vocabulary_head(adapted)
    assert head.weight is pretrained or torch.equal(head.weight, pretrained)
    assert not head.weight.requires_grad


def test_no_checkpoint(tokenizer):
    with pytest.raises(ValueError, match=r"not tied and it was not loaded from a checkpoint.* Pass imitation_head="):
        vocabulary_head(tiny_reward_model(tokenizer))


def test_reward_model_saved_without_head(tokenizer, tmp_path):
    tiny_reward_model(tokenizer).save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"has no vocabulary head \(lm_head.weight is missing\).* Pass imitation_head="
    ):
        vocabulary_head(model)


def test_checkpoint_that_does_not_exist(tokenizer):
    with pytest.raises(
        ValueError, match=r"cannot read a vocabulary head from '/nowhere/at/all'.* Pass imitation_head="
    ):
        vocabulary_head(tiny_reward_model(tokenizer), "/nowhere/at/all")


def test_encoder():
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=1)
    with pytest.raises(ValueError, match=r"BertForSequenceClassification.* no `imitation_head` can make an encoder"):
        vocabulary_head(BertForSequenceClassification(config))


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (nn.Linear(8, 259), r"expected a floating point weight of shape \(vocabulary, 16\), got .*\(259, 8\)"),
        (nn.Conv1d(16, 259, 1), r"imitation_head=Conv1d.*expected a linear layer or an embedding"),
    ],
)
def test_head_of_another_shape(tokenizer, head, message):
    with pytest.raises(ValueError, match=message):
        vocabulary_head(tiny_reward_model(tokenizer), head)
