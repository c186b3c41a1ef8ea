"""Roles on one base: the same tensors, and nothing else, in common."""

import gc

import pytest
import torch
from peft import (
    AutoPeftModelForCausalLM,
    AutoPeftModelForSequenceClassification,
    IA3Config,
    LoraConfig,
    get_peft_model,
)
from shared_case import BITS, IDS, base_path, four_roles, lora, outputs, trained_names
from tiny import byte_tokenizer, tiny_llama
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from trl_ext import LearnedReward, SharedBase
from trl_ext.shared_base import shared_base
from trl_ext.shared_base.shared_tree import storage_bytes
from trl_ext.trainer_kit.offloading import replace_storages, tensor_slots


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return base_path(tmp_path_factory.mktemp("shared"))


@pytest.fixture(params=BITS, ids=lambda bits: f"{bits} bits")
def base(request, path):
    return SharedBase.from_pretrained(path, bits=request.param)


def storages(model) -> set[int]:
    return {getattr(*slot).untyped_storage().data_ptr() for slot in tensor_slots(model)}


# One base


def test_every_frozen_tensor_is_the_bases(base):
    """By storage: what a role has beside the base is its adapter, and of a scorer its head; nothing is there twice."""
    known = storages(base.model)
    for name, role in four_roles(base).items():
        own = storages(role) - known
        adapter = {p.untyped_storage().data_ptr() for n, p in role.named_parameters() if "lora_" in n or "score" in n}
        assert own == adapter, name


def test_four_roles_cost_four_adapters(base):
    roles = four_roles(base)
    adapters = {
        name: sum(p.nbytes for n, p in role.named_parameters() if "lora_" in n or "score" in n)
        for name, role in roles.items()
    }
    alone = storage_bytes(base.model)
    assert storage_bytes(base.model, *roles.values()) == alone + sum(adapters.values())
    memory = base.memory()
    assert memory["base"] == alone and memory["policy policy"] == adapters["policy"]
    assert memory["reward second"] == adapters["second"]


def test_the_adapter_of_zeros_changes_nothing(base):
    assert torch.equal(outputs(base.policy()), outputs(base.model))


def test_quantised_bytes_by_hand(path):
    """Int8 weights take a byte each and 4 bytes per output row; NF4 half a byte, and a byte of scale per 64."""
    plain, eight, four = (storage_bytes(SharedBase.from_pretrained(path, bits=bits).model) for bits in BITS)
    rows, weights = 2 * (4 * 64 + 2 * 128 + 64), 2 * (4 * 64 * 64 + 3 * 64 * 128)
    assert plain - eight == 4 * weights - (weights + 4 * rows)
    scales = weights // 64
    assert 4 * weights - (plain - four) == pytest.approx(weights / 2 + scales, rel=0.5)  # tables of 256 beside them
    assert four < eight < plain


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("trained", ["policy", "reward", "second", "value"])
def test_training_one_role_changes_no_other_by_a_bit(base, trained, checkpointing):
    roles = four_roles(base, lora_dropout=0.5)
    before = {name: outputs(role) for name, role in roles.items()}
    alone = outputs(base.model)
    role = roles[trained].train()
    if checkpointing:
        role.enable_input_require_grads()
        role.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW([p for p in role.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        (role(IDS).logits.float() - 1).square().mean().backward()
        for other in roles.values():
            outputs(other)  # between the steps, and in the midst of another's training
        optimizer.step()
        optimizer.zero_grad()
    for name, other in roles.items():
        assert torch.equal(outputs(other), before[name]) == (name != trained), name
    assert torch.equal(outputs(base.model), alone)


def test_a_role_in_train_mode_leaves_the_others_in_eval_mode(base):
    roles = four_roles(base)
    roles["policy"].train()
    assert not base.model.training and not any(m.training for m in base.model.modules())
    roles["value"].eval()
    assert roles["policy"].training


def test_4_bit_weights_are_not_repacked(path):
    """In eval mode on a CPU with AVX-512, bitsandbytes would turn them into a layout that training cannot read."""
    base = SharedBase.from_pretrained(path, bits=4)
    roles = four_roles(base)
    first = {name: outputs(role) for name, role in roles.items()}
    packed = [getattr(*slot).clone() for slot in tensor_slots(base.model)]
    for name, role in roles.items():
        role.train()(IDS).logits.sum().backward()
        assert torch.equal(outputs(role), first[name])
    assert all(torch.equal(a, getattr(*slot)) for a, slot in zip(packed, tensor_slots(base.model), strict=True))


def test_biases_of_quantised_layers_are_a_roles_own(tmp_path):
    """bitsandbytes casts them in place to what it is fed: one role in bf16 would round every other's."""
    tokenizer = byte_tokenizer()
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config)
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.self_attn.q_proj.bias)
    model.save_pretrained(tmp_path)
    base = SharedBase.from_pretrained(tmp_path, bits=8, tokenizer=tokenizer)
    roles = four_roles(base)
    before = {name: outputs(role) for name, role in roles.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs(roles["policy"])
    assert all(torch.equal(outputs(roles[name]), before[name]) for name in ("reward", "second", "value"))


def test_moving_a_base_moves_its_roles_and_keeps_them_shared(base, monkeypatch):
    """Every storage gets a new one, as on a move to another device, and stays common."""
    roles = four_roles(base)
    before, memory = {name: outputs(role) for name, role in roles.items()}, base.memory()
    held = [getattr(*slot) for tree in (base.model, *roles.values()) for slot in tensor_slots(tree)]
    old = {tensor.untyped_storage().data_ptr() for tensor in held}  # held, or their memory would be used again
    moved = []

    def clone(storage, slot):
        moved.append(storage.data_ptr())
        return storage.clone()

    monkeypatch.setattr(shared_base, "replace_storages", lambda slots, new: replace_storages(slots, clone))
    monkeypatch.setattr(shared_base, "_elsewhere", lambda slots, device: slots)
    base.to("cpu")
    assert len(moved) == len(set(moved)) and set(moved) == old
    assert base.memory() == memory
    assert all(torch.equal(outputs(role), before[name]) for name, role in roles.items())


@pytest.mark.gpu
def test_to_the_cpu_and_back(path):
    base = SharedBase.from_pretrained(path, bits=8, device_map={"": "cuda:0"})
    policy = base.policy(lora())
    ids = IDS.cuda()
    with torch.no_grad():
        before = policy.eval()(ids).logits
        held = torch.cuda.memory_allocated()
        base.to("cpu")
        freed = held - torch.cuda.memory_allocated()  # cuBLAS's workspace stays, up to 32 MiB
        assert freed >= sum(base.memory().values())
        base.to("cuda")
        assert torch.equal(policy(ids).logits, before)


# Adapters


def test_adapters_and_heads_are_in_full_precision(path):
    for bits in BITS:
        base = SharedBase.from_pretrained(path, bits=bits, dtype="bfloat16")
        assert base.model.get_input_embeddings().weight.dtype == torch.bfloat16
        for role in four_roles(base).values():
            assert {role.get_parameter(name).dtype for name in trained_names(role)} == {torch.float32}
            assert role.get_input_embeddings().weight.dtype == torch.bfloat16  # peft's preparation would make it fp32
            assert outputs(role).isfinite().all()
        assert outputs(base.value_model(name="v")).dtype == torch.float32


def test_adapters_go_to_files_and_back_by_themselves(base, tmp_path):
    roles = four_roles(base)
    for name, role in roles.items():
        role.save_pretrained(tmp_path / name)
        assert sorted(p.name for p in (tmp_path / name).iterdir()) == [
            "README.md", "adapter_config.json", "adapter_model.safetensors",
        ]  # fmt: skip
    again = {
        "policy": base.policy(init_from=tmp_path / "policy", name="p"),
        "reward": base.reward_model(tmp_path / "reward", name="r").module,
        "second": base.reward_model(init_from=tmp_path / "second", name="s").module,
        "value": base.value_model(init_from=tmp_path / "value", name="v"),
    }
    for name, role in again.items():
        assert torch.equal(outputs(role), outputs(roles[name])), name
        assert trained_names(role) == trained_names(roles[name])


def test_saved_adapters_are_plain_peft(path, tmp_path):
    base = SharedBase.from_pretrained(path)
    roles = four_roles(base)
    for name, role in roles.items():
        role.save_pretrained(tmp_path / name)
    policy = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "policy")
    torch.testing.assert_close(outputs(policy), outputs(roles["policy"]))
    reward = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "reward", num_labels=1)
    reward.config.pad_token_id = base.tokenizer.pad_token_id
    torch.testing.assert_close(outputs(reward), outputs(roles["reward"]))
    texts = {"prompts": ["a", "b"], "completions": ["c", "de"]}
    assert LearnedReward(str(tmp_path / "reward"))(**texts) == pytest.approx(
        base.reward_model(tmp_path / "reward", name="r")(**texts)
    )


def test_a_value_model_takes_the_reward_models_head_or_a_policys_trunk(base, tmp_path):
    roles = four_roles(base)
    roles["reward"].save_pretrained(tmp_path / "reward")
    roles["policy"].save_pretrained(tmp_path / "sft")
    assert torch.equal(outputs(base.value_model(init_from=tmp_path / "reward")), outputs(roles["reward"]))
    from_policy = base.value_model(init_from=tmp_path / "sft")
    assert not outputs(from_policy).any()  # a head of zeros: it begins by expecting nothing
    name = next(name for name in trained_names(from_policy) if "lora_A" in name)
    assert torch.equal(from_policy.get_parameter(name), roles["policy"].get_parameter(name))


def test_a_reward_model_scores_without_dropout_and_is_left_in_its_mode(base):
    reward = base.reward_model(lora(lora_dropout=0.5))
    reward.module.train()
    scores = reward(prompts=["a", "a"], completions=["same", "same"])
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
    assert reward.module.training
    assert reward(prompts=["a", "a"], completions=["same", "same"]) == scores


def test_rewards_are_named_apart(base, tmp_path):
    first, second = base.reward_model(), base.reward_model(name="second")
    first.module.save_pretrained(tmp_path / "helpful")
    assert [first.__name__, second.__name__] == ["reward", "second"]
    assert base.reward_model(tmp_path / "helpful").__name__ == "helpful"
    assert set(base.roles()) == {"reward reward", "reward second"}  # nobody holds the third


def test_a_name_is_free_when_its_role_is_gone(base):
    policy = base.policy()
    with pytest.raises(ValueError, match=r"there is a policy named 'policy' already\. Give another name"):
        base.policy(lora())
    base.value_model(name="policy")  # of another kind
    del policy
    gc.collect()
    assert base.policy(lora()) is not None


def test_what_is_shown_of_a_base(base):
    policy = base.policy()
    assert "policy policy: 0." in repr(base) and base.name in repr(base)
    assert policy.peft_config["default"].base_model_name_or_path == base.name


def test_other_architectures(tmp_path):
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=2, n_head=2, vocab_size=len(tokenizer), pad_token_id=0))
    base = SharedBase(gpt2.eval(), tokenizer)
    roles = four_roles(base, target_modules=["c_attn", "c_proj"])
    assert storage_bytes(base.model, *roles.values()) < 1.5 * storage_bytes(base.model)
    assert all(outputs(role).isfinite().all() for role in roles.values())


# Bad input


def test_an_adapter_of_another_shape(path, tmp_path):
    other = SharedBase(tiny_llama(byte_tokenizer(), hidden_size=32), byte_tokenizer())
    other.policy(lora()).save_pretrained(tmp_path / "narrow")
    base = SharedBase.from_pretrained(path)
    with pytest.raises(
        ValueError, match=r"policy narrow: the adapter '.*narrow' does not fit this base: size mismatch"
    ):
        base.policy(init_from=tmp_path / "narrow")
    deep = SharedBase(
        tiny_llama(byte_tokenizer(), num_hidden_layers=3, hidden_size=64, intermediate_size=128), byte_tokenizer()
    )
    deep.policy(lora()).save_pretrained(tmp_path / "deep")
    with pytest.raises(ValueError, match=r"the base has no place for .*layers\.2.*load the base that"):
        base.policy(init_from=tmp_path / "deep")


def test_an_adapter_of_a_base_with_another_name(path, tmp_path):
    base = SharedBase.from_pretrained(path)
    policy = base.policy()
    policy.peft_config["default"].base_model_name_or_path = "meta-llama/Llama-2-7b-hf"
    policy.save_pretrained(tmp_path / "foreign")
    with pytest.raises(ValueError, match=r"was made for the base 'meta-llama/Llama-2-7b-hf', and this one is .*base'"):
        base.value_model(init_from=tmp_path / "foreign")


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (
            lambda base, sft, rm: base.policy(init_from="nowhere"),
            r"policy nowhere: expected the folder or hub id of an",
        ),
        (lambda base, sft, rm: base.policy(init_from=rm), r"is the adapter of a reward or value model"),
        (lambda base, sft, rm: base.reward_model(sft), r"reward_model\(.*sft'\): the adapter has no `score` head"),
        (
            lambda base, sft, rm: base.policy(sft),
            r"policy\(.*\): expected a LoraConfig\. A saved adapter is init_from=",
        ),
        (lambda base, sft, rm: base.value_model(LoraConfig(), init_from=rm), r"Give one of the two"),
        (
            lambda base, sft, rm: base.reward_model(LoraConfig(), init_from=rm),
            r"reward_model\(adapter=…, init_from=.*Give one of the two",
        ),
        (lambda base, sft, rm: base.reward_model(rm, batch_size=0), r"batch_size=0"),
    ],
)
def test_roles_that_cannot_be_made(path, tmp_path, ask, message):
    base = SharedBase.from_pretrained(path)
    base.policy(name="made").save_pretrained(tmp_path / "sft")
    base.reward_model(name="made").module.save_pretrained(tmp_path / "rm")
    with pytest.raises(ValueError, match=message):
        ask(base, str(tmp_path / "sft"), str(tmp_path / "rm"))


def test_a_base_that_somebody_has_unfrozen(path):
    base = SharedBase.from_pretrained(path)
    policy = base.policy(lora())
    base.model.lm_head.requires_grad_(True)
    with pytest.raises(ValueError, match=r"1 tensors of the base require gradients, e\.g\. 'lm_head\.weight'"):
        base.value_model()
    with pytest.raises(ValueError, match="train adapters only"):
        policy.train()(IDS)
    assert outputs(policy).isfinite().all()  # nothing is trained in eval mode
    base.model.requires_grad_(False)
    policy.train()(IDS)


def test_bits_for_a_model_that_is_quantised_already(path, tmp_path):
    SharedBase.from_pretrained(path, bits=8).model.save_pretrained(tmp_path / "int8")
    byte_tokenizer().save_pretrained(tmp_path / "int8")
    with pytest.raises(ValueError, match=r"bits=8\): the checkpoint is quantised already\. Leave bits out"):
        SharedBase.from_pretrained(tmp_path / "int8", bits=8)
    base = SharedBase.from_pretrained(tmp_path / "int8")
    torch.testing.assert_close(outputs(base.model), outputs(SharedBase.from_pretrained(path, bits=8).model))
    with pytest.raises(ValueError, match=r"bits=5\): expected 8, 4, or None"):
        SharedBase.from_pretrained(path, bits=5)


def test_models_that_cannot_be_a_base(tokenizer):
    model = tiny_llama(tokenizer)
    with pytest.raises(
        ValueError, match=r"SharedBase\(PeftModelForCausalLM\): expected a causal LM .* without adapter"
    ):
        SharedBase(get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])), tokenizer)
    with pytest.raises(ValueError, match=r"SharedBase\(LlamaModel\): it has no vocabulary head"):
        SharedBase(tiny_llama(tokenizer).model, tokenizer)


# What would change the base under all roles


@pytest.mark.parametrize("where", ["role", "below"])
@pytest.mark.parametrize("merge", ["merge_adapter", "merge_and_unload"])
def test_a_role_is_not_merged_in_place(base, where, merge):
    roles = four_roles(base)
    before = {name: outputs(role) for name, role in roles.items()}
    policy = roles["policy"] if where == "role" else roles["policy"].base_model
    with pytest.raises(ValueError, match=r"cannot be merged in place.*base\.merge\(adapter, folder\).*use_vllm"):
        getattr(policy, merge)()
    assert all(torch.equal(outputs(role), before[name]) for name, role in roles.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_lora_weights": "pissa"}, r"init_lora_weights='pissa'\): it is made by changing the base's weights"),
        ({"init_lora_weights": "olora"}, r"policy policy: LoraConfig\(init_lora_weights='olora'\)"),
        ({"bias": "all"}, r"bias='all'\): biases belong to the base"),
        ({"layer_replication": [[0, 2], [1, 2]]}, r"layer_replication=.*: a role has the layers of its base"),
    ],
)
def test_lora_that_would_change_the_base(base, changes, message):
    before = outputs(base.model)
    with pytest.raises(ValueError, match=message):
        base.policy(lora(**changes))
    assert torch.equal(outputs(base.model), before)


def test_dora_leaves_an_8_bit_base_alone(path):
    with pytest.raises(ValueError, match=r"use_dora=True\): on an 8-bit base DoRA takes the weights' scales away"):
        SharedBase.from_pretrained(path, bits=8).value_model(lora(use_dora=True))
    for bits in (None, 4):
        base = SharedBase.from_pretrained(path, bits=bits)
        roles = four_roles(base)
        before = outputs(roles["reward"])
        base.policy(lora(use_dora=True), name="dora").train()(IDS).logits.sum().backward()
        assert torch.equal(outputs(roles["reward"]), before)


def test_an_adapter_of_a_shallower_base(path, tmp_path):
    """PEFT has noted the names of its layers, all of which the deeper base has too."""
    shallow = tiny_llama(byte_tokenizer(), num_hidden_layers=1, hidden_size=64, intermediate_size=128)
    SharedBase(shallow, byte_tokenizer()).policy().save_pretrained(tmp_path / "shallow")
    with pytest.raises(ValueError, match=r"does not fit this base: it has 1 layers, and the base 2"):
        SharedBase.from_pretrained(path).policy(init_from=tmp_path / "shallow")
    some = SharedBase.from_pretrained(path)
    some.policy(lora(target_modules=["q_proj"], layers_to_transform=[0])).save_pretrained(tmp_path / "some")
    some.policy(init_from=tmp_path / "some")


def test_adapters_of_other_kinds(path):
    with pytest.raises(ValueError, match=r"reward reward: expected LoRA, got IA3Config"):
        SharedBase.from_pretrained(path).reward_model(IA3Config(target_modules=["q_proj"], feedforward_modules=[]))


def test_a_call_that_failed_leaves_the_name_free(path):
    base = SharedBase.from_pretrained(path)
    with pytest.raises(ValueError) as held:
        base.reward_model(batch_size=0)
    assert held.value is not None and base.reward_model(batch_size=1) is not None


def test_a_model_whose_layers_have_an_adapter(tokenizer):
    model = tiny_llama(tokenizer)
    get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    with pytest.raises(ValueError, match=r"SharedBase\(LlamaForCausalLM\): it has an adapter in its layers already"):
        SharedBase(model, tokenizer)


@pytest.mark.skipif(torch.cuda.is_available(), reason="where there is a card, it is moved there")
def test_to_a_card_that_is_not_there(path):
    with pytest.raises(ValueError, match=r"SharedBase\.to\('cuda'\): no CUDA device is available here"):
        SharedBase.from_pretrained(path).to("cuda")
