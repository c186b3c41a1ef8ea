"""Log-probabilities in chunks: those of whole logits, with their gradients, and without their memory."""

import pytest
import torch
from accelerate.utils import convert_outputs_to_fp32
from peft import LoraConfig, get_peft_model
from shared_case import base_path, lora
from test_vocabulary_head import GPT_SIZES, SIZES
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    OPTConfig,
    PhiConfig,
    Qwen2Config,
)

from examples.benchmarks.common.live_bytes import LiveBytes
from trl_ext import SharedBase
from trl_ext.sequences import log_probs as module
from trl_ext.sequences.log_probs import completion_log_probs, in_chunks, label_log_probs, reads_logits_off_states
from trl_ext.sequences.training_rows import IGNORED, collate, training_row

FAMILIES = {
    "Llama": LlamaConfig(**SIZES),
    "tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "Gemma 2": Gemma2Config(**SIZES, final_logit_softcapping=0.3),
    "Granite": GraniteConfig(**SIZES, logits_scaling=0.2),
    "Cohere": CohereConfig(**SIZES, logit_scale=4.0),
    "GPT-2": GPT2Config(**GPT_SIZES),  # tied
    "Qwen2": Qwen2Config(**SIZES),
    "Phi": PhiConfig(**SIZES),  # bias
    "OPT": OPTConfig(**SIZES, ffn_dim=32, word_embed_proj_dim=8),  # projected states
    "BERT": BertConfig(**SIZES, is_decoder=True),  # two layers and a norm are its head
    "Mamba": MambaConfig(hidden_size=16, num_hidden_layers=2, vocab_size=64, state_size=4),
}


@pytest.fixture(autouse=True)
def chunks_of_five(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_LOGITS", 5 * 64 + 1)


def family(config) -> nn.Module:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if "bias" in name:
            nn.init.normal_(parameter.data)  # else no test would miss it
    return model


def batch(words: int = 64) -> dict[str, Tensor]:
    """Three rows of unequal lengths; the second has no label."""
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, words, (length,), generator=generator).tolist() for length in (9, 6, 12)]
    rows = [training_row(row[:start], row[start:]) for row, start in zip(ids, (3, 6, 1), strict=True)]
    return collate(rows, pad_token_id=0)


def from_logits(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """The definition, position by position."""
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    all_log_probs = logits.float().log_softmax(-1)
    result = [[torch.zeros(())] * inputs["labels"].size(1) for _ in inputs["labels"]]
    for row, t in (inputs["labels"] != IGNORED).nonzero().tolist():
        if t > 0:
            result[row][t] = all_log_probs[row, t - 1, inputs["labels"][row, t]]
    return torch.stack([torch.stack(row) for row in result])


def gradients(model: nn.Module, log_probs: Tensor) -> dict[str, Tensor]:
    """Of a sum in which every label counts differently."""
    model.zero_grad()
    (log_probs * torch.linspace(0.1, 1.0, log_probs.numel()).view_as(log_probs)).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def check_same(model: nn.Module, inputs: dict[str, Tensor]) -> None:
    assert reads_logits_off_states(model)
    ours, theirs = label_log_probs(model, inputs), from_logits(model, inputs)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    ours, theirs = gradients(model, ours), gradients(model, theirs)
    assert ours.keys() == theirs.keys() != set()
    rounding = 1e-6 * max(
        gradient.abs().max().item() for gradient in theirs.values()
    )  # that of keys' biases is only this
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-5, atol=rounding, msg=name)


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_values_and_gradients_are_those_of_whole_logits(config):
    check_same(family(config), batch())


HEADS = {
    "adapted head": (False, LoraConfig(target_modules=["q_proj", "lm_head"], init_lora_weights=False)),
    "adapted tied head": (True, LoraConfig(target_modules=["lm_head"], init_lora_weights=False)),
    "copied head": (False, LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])),
    "trained tokens": (True, LoraConfig(target_modules=["q_proj"], trainable_token_indices=[3, 5])),
    "frozen head": (False, LoraConfig(target_modules=["q_proj"])),
}


@pytest.mark.parametrize(("tied", "config"), HEADS.values(), ids=HEADS)
def test_adapters_of_the_head_take_part(tied, config):
    torch.manual_seed(0)
    model = get_peft_model(family(FAMILIES["tied" if tied else "Llama"]), config)
    check_same(model, batch())


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_base(tmp_path, bits):
    model = SharedBase.from_pretrained(base_path(tmp_path), bits=bits).policy(lora())
    check_same(model.eval(), batch(259))


def test_gradient_checkpointing_and_a_hook_of_somebody_else():
    model = get_peft_model(family(FAMILIES["Llama"]), HEADS["adapted head"][1]).train()
    model.get_base_model().gradient_checkpointing_enable()
    model.enable_input_require_grads()
    check_same(model, batch())


def test_a_batch_without_labels_is_zero_and_has_gradients_of_zero():
    """DDP waits for every parameter's gradient, whatever a process has read."""
    model, inputs = family(FAMILIES["Llama"]), batch()
    inputs["labels"] = torch.full_like(inputs["labels"], IGNORED)
    log_probs = label_log_probs(model, inputs)
    assert log_probs.shape == inputs["labels"].shape and not log_probs.any()
    found = gradients(model, log_probs)
    assert len(found) == len(list(model.parameters())) and not any(gradient.any() for gradient in found.values())


def test_chunks_by_hand():
    """Of two states, then of one; without a label there is one empty chunk."""
    sizes = []

    def read(states: Tensor, labels: Tensor) -> Tensor:
        sizes.append(len(states))
        return states[:, 0] + labels

    states, labels = torch.tensor([[0.1], [0.2], [0.3]]), torch.tensor([1, 2, 3])
    torch.testing.assert_close(in_chunks(read, states, labels, rows=2), torch.tensor([1.1, 2.2, 3.3]))
    assert in_chunks(read, states[:0], labels[:0], rows=2).shape == (0,)
    torch.testing.assert_close(in_chunks(read, states, labels, rows=0), torch.tensor([1.1, 2.2, 3.3]))
    assert sizes == [2, 1, 0, 1, 1, 1]


def test_one_column_has_nothing_to_be_read_from():
    ids = torch.tensor([[5], [6]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    assert label_log_probs(family(FAMILIES["Llama"]), inputs).tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("prepared", [True, False])
def test_under_autocast(prepared):
    """Weights that were cast while it was tried must not be found in the cache by what trains."""
    model, inputs = family(FAMILIES["Llama"]), batch()
    exact = gradients(model, from_logits(model, inputs))
    if prepared:  # as accelerate does it
        model.forward = convert_outputs_to_fp32(torch.autocast("cpu", dtype=torch.bfloat16)(model.forward))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        log_probs = label_log_probs(model, inputs)
        assert reads_logits_off_states(model)
        torch.testing.assert_close(log_probs, from_logits(model, inputs), atol=0.02, rtol=0)
    found = gradients(model, log_probs)
    assert found.keys() == exact.keys()
    for name, expected in exact.items():
        torch.testing.assert_close(found[name], expected, rtol=0, atol=0.05 * expected.abs().max().item(), msg=name)


def test_dropout_of_the_head_is_the_same_in_the_second_pass(monkeypatch):
    config = LoraConfig(target_modules=["lm_head"], init_lora_weights=False, lora_dropout=0.5)
    torch.manual_seed(0)
    model = get_peft_model(family(FAMILIES["Llama"]), config).train()

    def seeded() -> dict[str, Tensor]:
        torch.manual_seed(1)
        return gradients(model, label_log_probs(model, batch()))

    ours = seeded()
    monkeypatch.setattr(module, "checkpoint", lambda function, *args, use_reentrant: function(*args))
    torch.testing.assert_close(ours, seeded())


def test_trying_it_leaves_no_trace():
    model = family(LlamaConfig(**SIZES, attention_dropout=0.5)).train()
    before = torch.get_rng_state()
    assert reads_logits_off_states(model) and model.training
    label_log_probs(model.eval(), batch())
    assert torch.equal(torch.get_rng_state(), before)
    modules = list(model.modules())
    assert not any("forward" in vars(part) or part._forward_hooks for part in modules)


class Uneven(LlamaForCausalLM):
    """Its logits depend on where a token stands."""

    def forward(self, input_ids, **kwargs):
        output = super().forward(input_ids, **kwargs)
        places = torch.arange(output.logits.size(1)).view(1, -1, 1)
        output.logits = output.logits * (1 + places)
        return output


class Blind(LlamaForCausalLM):
    """Its trunk is never called as a module."""

    def forward(self, input_ids, attention_mask=None, **kwargs):
        output = self.model.forward(input_ids, attention_mask=attention_mask)
        output.logits = self.lm_head(output.last_hidden_state)
        return output


@pytest.mark.parametrize("kind", [Uneven, Blind, nn.DataParallel])
def test_other_models_are_read_from_whole_logits(kind):
    torch.manual_seed(0)
    model = kind(family(FAMILIES["Llama"])) if kind is nn.DataParallel else kind(FAMILIES["Llama"]).eval()
    assert not reads_logits_off_states(model)
    torch.testing.assert_close(label_log_probs(model, batch()), from_logits(model, batch()), atol=1e-6, rtol=0)


def test_completions_are_read_in_the_models_own_order():
    model = family(FAMILIES["Llama"]).train()
    rows = [training_row([5, 6], [7, 8, 9]), training_row([5], [7]), training_row([4, 4, 4], [3, 3])]
    found = completion_log_probs(model, rows, pad_token_id=0, batch_size=2, device=torch.device("cpu"))
    assert model.training
    for row, values in zip(rows, found, strict=True):
        alone = from_logits(model.eval(), collate([row], pad_token_id=0))[0]
        assert values == pytest.approx(alone[alone != 0].tolist(), abs=1e-6)


def peak(model: nn.Module, inputs: dict[str, Tensor], read) -> int:
    model.zero_grad(set_to_none=True)
    with LiveBytes(model) as live:
        read(model, inputs).sum().backward()
    return live.peak


def trunk_alone(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    return model.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state


def extra_bytes(words: int, length: int, read) -> int:
    """Above what the trunk alone takes, the head frozen, whose gradient would be as large as itself."""
    model = family(LlamaConfig(**SIZES | {"vocab_size": words}))
    model.lm_head.weight.requires_grad_(False)
    ids = torch.arange(4 * length).view(4, length) % words
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    return peak(model, inputs, read) - peak(model, inputs, trunk_alone)


def test_memory_grows_neither_with_words_nor_with_positions(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_LOGITS", 2**16)
    sizes = [(2000, 64), (2000, 256), (16_000, 64), (16_000, 256)]
    extra, whole = (
        [extra_bytes(*size, read) for size in sizes] for read in (label_log_probs, module._from_whole_logits)
    )
    assert max(extra) < 4 * 4 * 2**16  # of a chunk's logits in fp32
    assert whole[3] > 2 * 4 * 4 * 256 * 16_000
