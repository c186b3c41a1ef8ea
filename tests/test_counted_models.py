"""Shapes counted on the meta device: against what transformers and PEFT build, the table of known ones, and by hand."""

import time
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3Config

from trl_ext import memory_plan
from trl_ext.memory_planning.counted_models import counted_shape
from trl_ext.memory_planning.layer_kinds import Experts, Norm
from trl_ext.memory_planning.layer_pass import Pass
from trl_ext.memory_planning.layer_reading import layer_of
from trl_ext.memory_planning.memory_terms import adapter_params, base_bytes, cache_bytes
from trl_ext.memory_planning.model_shapes import BUILT_IN, shape_of
from trl_ext.memory_planning.plan_activations import (
    attention_kept,
    dropout_kept,
    experts_kept,
    layer_kept,
    linears_kept,
    norms_kept,
)
from trl_ext.memory_planning.plan_report import print_plan

SIZES = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "vocab_size": 96, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 96, "head_dim": 16}
OTHERS = {
    "opt": {"word_embed_proj_dim": 64, "ffn_dim": 160, "dropout": 0.0},
    "gptj": {"rotary_dim": 8},
    "gpt_oss": {"num_local_experts": 8, "num_experts_per_tok": 2},
}
KINDS = ["gemma3_text", "phi3", "olmo2", "granite", "smollm3", "qwen3_moe", "mixtral", "gpt2", "gpt_neox", "falcon"]
KINDS += ["phi", "cohere2", "starcoder2", "olmoe", "stablelm", "deepseek_v3", "gpt_oss", "qwen3_next"]


def config_of(kind: str, **changes):
    sizes = SIZES | (EXPERTS if kind == "qwen3_moe" else {})
    sizes |= OTHERS.get(kind, {})
    if kind in ("gpt2", "falcon", "mamba"):
        sizes = {key: value for key, value in sizes.items() if key not in ("num_key_value_heads", "intermediate_size")}
    return AutoConfig.for_model(kind, **sizes | changes)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_and_adapters_are_what_transformers_and_peft_make(kind):
    config = config_of(kind)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        shape, everything = shape_of(config), model.num_parameters()
        linear = [m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "head" not in name]
        lora = LoraConfig(r=3, target_modules="all-linear", task_type="CAUSAL_LM")
        made = get_peft_model(model, lora).get_nb_trainable_parameters()[0]
    assert shape.params == everything and adapter_params(shape, 3) == made
    if kind != "gpt2":  # whose layers are of another class
        assert shape.linear_params == sum(module.weight.numel() for module in linear)
    assert base_bytes(shape, bits=None, width=2) == 2 * everything


@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen2.5-7b", "qwen3-8b", "gemma-2-9b"])
def test_counting_agrees_with_the_table(name):
    fields = dict(BUILT_IN[name])
    counted, table = (make(fields) for make in (_counted, shape_of))
    assert counted.kinds == table.kinds and counted.params == table.params
    assert (counted.vocab, counted.hidden, counted.tied) == (table.vocab, table.hidden, table.tied)


def _counted(fields):
    return counted_shape(AutoConfig.for_model(**fields), name="x", call="memory_plan")


def test_layers_by_hand():
    (phi3,) = shape_of(config_of("phi3")).kinds
    assert phi3.linears == ((64, 64), (64, 128), (64, 320), (160, 64))  # o; q, k, v in one; gate and up in one; down
    assert (phi3.queries, phi3.keys, phi3.inner, phi3.mlp_kept) == (64, 32, 160, 640)
    assert phi3.copies_output and phi3.fused and phi3.norms == (Norm(64), Norm(64))
    (olmo2,) = shape_of(config_of("olmo2")).kinds
    assert (
        olmo2.norms == tuple(Norm(n, wide=True) for n in (64, 32, 64, 64)) and not olmo2.assumed
    )  # of all queries, all keys
    (neox,) = shape_of(config_of("gpt_neox")).kinds
    assert neox.mlp_kept == 2 * 160 and all(norm.by_torch for norm in neox.norms)  # no gate
    (cohere,) = _kinds("cohere2")
    assert not (olmo2.fused or neox.fused or cohere.fused or olmo2.copies_output)
    assert cohere.reads == 1 and cohere.norms == (Norm(64, states=2, wide=True),)  # attention and MLP read one norm


def _kinds(kind, **changes):
    return shape_of(config_of(kind, **changes)).kinds


def test_sliding_layers_of_gemma_3():
    shape = shape_of(config_of("gemma3_text", num_hidden_layers=6, sliding_window=8))
    assert sorted(layer.window or 0 for layer in shape.kinds) == [0, 8] and list(shape.kinds.values()) == [5, 1]
    # 2 (keys, values) · 2 heads of 256 · 3 rows · (5 layers of 8 + one of 20 tokens) · 2 bytes
    assert cache_bytes(shape, rows=3, tokens=20, width=2) == 2 * 512 * 3 * (5 * 8 + 20) * 2


def test_a_mixture_of_experts_by_hand():
    (layer,) = _kinds("qwen3_moe")
    assert layer.experts == Experts(count=8, active=2, inner=96, params=8 * 3 * 64 * 96, adapted=True)
    assert layer.linears == ((64, 64), (64, 32), (64, 32), (64, 64)) and layer.inner == 0
    run = Pass(shape=shape_of(config_of("qwen3_moe")), rows=1, length=5, width=4, rank=2)
    pairs = 5 * 2
    kept = 4 * pairs * (2 * 64 + 4 * 96) + 32 * pairs + 4 * 5 * 8
    assert experts_kept(run) == kept + 4 * layer.experts.params  # PEFT's copy with the product added
    assert experts_kept(replace(run, rank=0)) == kept
    assert not any(layer.experts for layer in _kinds("phi3"))


def test_dense_layers_and_experts_in_one_model():
    shape = shape_of(config_of("qwen3_moe", mlp_only_layers=[1]))
    assert sorted(bool(layer.experts) for layer in shape.kinds) == [False, True] and sum(shape.kinds.values()) == 3


def test_terms_of_other_layers_by_hand():
    """5 tokens; H = 64, Q = 64, K = 32, I = 160."""
    run = Pass(shape=shape_of(config_of("phi3")), rows=1, length=5, width=4, rank=2)
    # two states, 4 I, what A makes of four layers, the output's copy
    assert linears_kept(run) == 4 * 5 * (2 * 64 + 640 + 4 * 2 + 64)
    neox = Pass(shape=shape_of(config_of("gpt_neox")), rows=1, length=5, width=2, rank=2, cuda=False)
    assert norms_kept(neox) == 2 * 5 * (2 * 64 + 8)  # torch's kernel keeps its input in 16 bits, a mean and 1/σ
    assert norms_kept(replace(neox, cuda=True)) == 2 * 5 * (4 * 64 + 8)  # autocast of CUDA: in fp32
    layer, _ = _kinds("gpt_oss", head_dim=16)
    eager = Pass(
        shape=shape_of(config_of("gpt_oss", head_dim=16)), at=replace(layer, narrow=False), rows=1, length=5, width=2
    )
    # q, k and v and output; a number per head; the mask; the scores in fp32 and in 16 bits
    assert attention_kept(eager) == 2 * 5 * 4 * 64 + 4 * 5 * 4 + 2 * 25 + (4 + 2) * 4 * 25
    assert (
        attention_kept(eager) - attention_kept(replace(eager, at=layer)) == 4 * 4 * 25
    )  # with sinks: in 16 bits alone
    falcon = Pass(shape=shape_of(config_of("falcon")), rows=1, length=5, width=2)
    # q, k and v of all heads in fp32, the output in 16 bits; the scores in fp32
    assert attention_kept(falcon) == 5 * 64 * (3 * 4 + 2) + 4 * 4 * 25


def test_relu_and_dropout_by_hand():
    """5 tokens; H = Q = 64, I = 160; ReLU keeps its result alone, of which an adapter's copy is one more."""
    run = Pass(shape=shape_of(config_of("opt", dropout=0.1)), rows=1, length=5, width=2, rank=2)
    assert (run.layer.mlp_kept, run.layer.keeps_result, run.layer.reads) == (160, True, 2)
    copies = (4 * 64 + 64 + 160) - (2 * 64 + 160) + 160  # of q, k, v, o, up and down, but what is counted already
    assert linears_kept(run) == 2 * 5 * (2 * 64 + 160 + copies + 2 * 6)
    assert dropout_kept(run) == 2 * 5 * 64 and dropout_kept(replace(run, cuda=False)) == 2 * 2 * 5 * 64
    assert layer_kept(run) - layer_kept(replace(run, at=replace(run.layer, drops=False))) == dropout_kept(run)
    assert not any(layer.drops or layer.keeps_result for kind in ("phi3", "gpt_neox") for layer in _kinds(kind))


def test_experts_that_stay_as_they_are_keep_less():
    """5 tokens, 2 experts each; gate and up, four steps between, and the product: 7 I, or without weights to train 6 I."""
    layer, _ = _kinds("gpt_oss")
    run = Pass(shape=shape_of(config_of("gpt_oss")), at=layer, rows=1, length=5, width=2, rank=2)
    assert layer.experts.states == 7 and not layer.experts.adapted and layer.narrow
    choice = 32 * 10 + 4 * 5 * 8
    assert experts_kept(run) == 2 * 10 * (64 + 6 * 160) + choice
    assert experts_kept(replace(run, trains_all=True, rank=0)) == 2 * 10 * (2 * 64 + 7 * 160) + choice


def test_the_text_part_of_what_sees_images():
    config = Gemma3Config(text_config=SIZES | {"head_dim": 16})
    assert shape_of(config).params == shape_of(config_of("gemma3_text", head_dim=16)).params
    assert shape_of(config.to_dict() | {"_name_or_path": "g"}).params == shape_of(config).params


@pytest.mark.parametrize(
    ("kind", "changes", "attends"),
    [
        ("jamba", {"attn_layer_offset": 2, "attn_layer_period": 3}, 1),
        ("olmo_hybrid", {"layer_types": ["linear_attention", "linear_attention", "full_attention"]}, 1),
    ],
)
def test_layers_named_after_their_attention_are_told_by_their_parts(kind, changes, attends):
    """Attention beside state-space layers: 4 heads of 16, of which 2 have keys; an MLP of 160."""
    shape = shape_of(config_of(kind, **changes))
    told = [(layer, count) for layer, count in shape.kinds.items() if layer.heads]
    assert [(layer.queries, layer.keys, layer.inner, count) for layer, count in told] == [(64, 32, 160, attends)]
    assert set(shape.assumed) == {"a layer without attention"} and not told[0][0].assumed
    assert memory_plan(config_of(kind, **changes), "ppo").peak > 0


def test_a_decoder_layer_inside_a_layer_is_not_all_attention():
    """Zamba's hybrid layers hold one with attention of twice the width, of which its MLP is no part, and a mixer."""
    shape = shape_of(AutoConfig.for_model("zamba", num_hidden_layers=8))
    (layer,) = [layer for layer in shape.kinds if layer.heads]
    assert (layer.queries, layer.keys, layer.heads) == (2 * 3712, 2 * 3712, 16) and layer.inner >= 4 * 3712
    assert layer.assumed == "the part 'shared_transf'"


class AttentionLayer(torch.nn.Module):
    """A layer whose class says attention, with linear layers and no parts."""

    def __init__(self):
        super().__init__()
        self.mixer = torch.nn.Linear(64, 64)


class WholeAttention(torch.nn.Module):
    """A layer all of which is one attention."""

    def __init__(self):
        super().__init__()
        self.attention = AttentionLayer()


def test_layers_whose_parts_say_little_are_assumed():
    config = config_of("phi3")
    assert layer_of(AttentionLayer(), None, config, 64).assumed == "a layer without attention"
    assert "its MLP" in layer_of(WholeAttention(), None, config, 64).assumed


@pytest.mark.parametrize(("kind", "words"), [("mamba", "a layer without attention"), ("deepseek_v3", "attention of")])
def test_what_is_assumed_is_said(kind, words):
    plan = memory_plan(config_of(kind), "sft")
    assert any(words in text for text in plan.shape.assumed) and plan.peak > 0
    kept = [f"{words_of}: what its linear layers make is kept" for words_of in plan.shape.assumed]
    assert [text for text in plan.assumed if "kept" in text] == kept
    assert not memory_plan(config_of("phi3"), "sft").assumed


def test_an_adapter_that_peft_refuses_is_a_sentence_of_its_own():
    said = ["a layer without attention: what its linear layers make is kept"]
    assert memory_plan(config_of("mamba"), "sft", lora=None).assumed == said
    said.append("every linear layer has an adapter, which PEFT refuses")
    assert memory_plan(config_of("mamba"), "sft").assumed == said


@pytest.mark.parametrize("bits", [8, 4])
def test_layers_that_bitsandbytes_leaves_are_counted_as_they_are(bits, capsys):
    """It replaces torch's own linear layers, and Falcon's are of a class of their own."""
    plain, quantised = (memory_plan(config_of("falcon"), "sft", bits=given) for given in (None, bits))
    assert quantised.phases == plain.phases and not plain.assumed
    print_plan(quantised, None, card_name="")
    assert "Assumed: its layers stay in 16 bits, as bitsandbytes leaves those" in capsys.readouterr().out
    plain, quantised = (memory_plan(config_of("opt"), "sft", bits=given) for given in (None, bits))
    assert quantised.phases["load"].terms["base weights"] < plain.phases["load"].terms["base weights"]


def test_experts_are_not_quantised():
    """bitsandbytes takes linear layers, and experts are stacked."""
    dense, quantised = (memory_plan(config_of("qwen3_moe"), "sft", bits=bits) for bits in (None, 4))
    assert dense.assumed == [] and quantised.assumed == ["experts stay in 16 bits, as bitsandbytes leaves them"]
    experts = 3 * 8 * 3 * 64 * 96  # layers, experts, gate, up and down
    assert quantised.phases["load"].terms["base weights"] > 2 * experts


def test_a_70b_takes_seconds():
    sizes = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}
    start = time.perf_counter()
    shape = shape_of(AutoConfig.for_model("olmo2", **sizes, num_key_value_heads=8))
    assert shape.params > 65e9 and time.perf_counter() - start < 20


TRACKED = ["llama", "gemma2", "gemma3_text", "phi3", "olmo2", "granite", "smollm3", "qwen3_moe", "opt"]


@pytest.mark.parametrize(
    ("kind", "within"), [*((kind, 0.01) for kind in TRACKED), ("gptj", 0.04), ("falcon", 0.05), ("gpt_oss", 0.02)]
)
def test_a_layer_keeps_what_torchs_memory_tracker_sees(kind, within):
    """An oracle that knows nothing of formulas: torch's tracker on tensors without data, all weights trained in bf16."""
    run = Pass(shape=shape_of(config_of(kind)), rows=2, length=48, width=2, trains_all=True, cuda=False)
    kept = [tracked_activations(config_of(kind, num_hidden_layers=layers)) for layers in (1, 2)]
    assert layer_kept(run) == pytest.approx(kept[1] - kept[0], rel=within)


def tracked_activations(config) -> int:
    """Bytes of activations that a forward pass leaves for the backward pass."""
    with FakeTensorMode():
        model, tracker = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16), MemTracker()
        tracker.track_external(model)
        with tracker:
            ids, mask = torch.zeros(2, 48, dtype=torch.long), torch.ones(2, 48, dtype=torch.long)
            states = model.eval().base_model(input_ids=ids, attention_mask=mask)[0]
            sizes = tracker.get_tracker_snapshot("current")[torch.device("cpu")]
            states.float().sum().backward()
    return next(size for kind, size in sizes.items() if str(kind).endswith("ACT"))
