"""An adapter says by its files which embeddings it was trained with: loaded anywhere, it answers as PEFT's own loading does."""

from argparse import Namespace

import pytest
import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification, LoraConfig, get_peft_model
from resized_case import KINDS, TEXT, answers, base_folder, grown_adapter, grown_tokenizer, new_ids
from shared_case import SIZES, lora, outputs
from tiny import byte_tokenizer, tiny_llama, tiny_reward_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from trl_ext import LearnedReward, SharedBase
from trl_ext.cli.generate_policy import load_policy
from trl_ext.rewards.reward_models import load_scorer
from trl_ext.trainer_kit.saved_adapters import load_with_adapter

ways = pytest.mark.parametrize("kind", KINDS)
ties = pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
OWN_TO_PEFT = KINDS[:3]  # those that AutoPeftModel loads: it goes by the tokenizer, which says nothing of the others


def generating(model, adapter):
    return load_policy(str(model), str(adapter), Namespace(generator="transformers", dtype="float32", device="cpu"))


# Everywhere the same


@ways
@ties
def test_a_policy(tmp_path, kind, tied):
    path, saved = grown_adapter(tmp_path, kind, "CAUSAL_LM", tied=tied)
    expected, base = answers(saved), SharedBase.from_pretrained(tmp_path / "base")
    if kind in OWN_TO_PEFT:
        assert torch.equal(answers(AutoPeftModelForCausalLM.from_pretrained(path)), expected)
    assert torch.equal(answers(load_with_adapter(path, AutoModelForCausalLM, call="")), expected)
    assert torch.equal(answers(base.policy(init_from=path)), expected)
    assert torch.equal(answers(generating(tmp_path / "base", path)), expected)


@ways
@ties
def test_a_reward_model(tmp_path, kind, tied):
    path, saved = grown_adapter(tmp_path, kind, "SEQ_CLS", tied=tied)
    expected, base = answers(saved), SharedBase.from_pretrained(tmp_path / "base")
    if kind in OWN_TO_PEFT:
        peft = AutoPeftModelForSequenceClassification.from_pretrained(path, num_labels=1)
        assert torch.equal(answers(peft), expected)
    assert torch.equal(answers(load_scorer(str(path))), expected)
    assert torch.equal(answers(base.reward_model(path).module), expected)
    assert torch.equal(answers(base.value_model(init_from=path)), expected)
    asked = {"prompts": [TEXT], "completions": [""], "completion_ended": [False]}
    for reward in (LearnedReward(str(path), device="cpu"), base.reward_model(path, name="again")):
        assert reward(**asked) == pytest.approx([expected.item()], rel=1e-5)


@ways
@ties
def test_a_policys_trunk_under_a_new_head(tmp_path, kind, tied):
    path, saved = grown_adapter(tmp_path, kind, "CAUSAL_LM", tied=tied)
    scorers = (
        load_scorer(str(path), new_head=True),
        SharedBase.from_pretrained(tmp_path / "base").value_model(init_from=path),
    )
    with torch.no_grad():
        expected = saved.get_base_model().model(new_ids()).last_hidden_state
        for scorer in scorers:
            assert torch.equal(scorer.get_base_model().model(new_ids()).last_hidden_state, expected)


@ways
@ties
def test_merged_and_saved(tmp_path, kind, tied):
    path, saved = grown_adapter(tmp_path, kind, "CAUSAL_LM", tied=tied)
    merged = SharedBase.from_pretrained(tmp_path / "base").merge(path, tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(merged.path)
    torch.testing.assert_close(answers(plain), answers(saved))
    assert len(AutoTokenizer.from_pretrained(merged.path)) == len(grown_tokenizer())


@ways
@pytest.mark.parametrize("task", ["CAUSAL_LM", "SEQ_CLS"])
@ties
def test_a_shared_base_stays_as_it_is(tmp_path, kind, task, tied):
    """transformers resizes in place, and PEFT loads embeddings into the base's own."""
    path, _ = grown_adapter(tmp_path, kind, task, tied=tied)
    base = SharedBase.from_pretrained(tmp_path / "base")
    other, before = base.policy(lora(), name="other"), {n: p.clone() for n, p in base.model.state_dict().items()}
    said = outputs(other)
    role = base.policy(init_from=path) if task == "CAUSAL_LM" else base.value_model(init_from=path)
    role.train()(input_ids=new_ids()).logits.sum().backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.model.state_dict().items())
    assert torch.equal(outputs(other), said) and base.model.config.vocab_size == len(before["lm_head.weight"])


@pytest.mark.parametrize("kind", OWN_TO_PEFT)
@ties
def test_a_quantised_base(tmp_path, kind, tied):
    """Its embedding and head are not quantised."""
    path, _ = grown_adapter(tmp_path, kind, "CAUSAL_LM", tied=tied, sizes=SIZES)
    base = SharedBase.from_pretrained(tmp_path / "base", bits=8)
    before, role = outputs(base.model), base.policy(init_from=path)
    eight = {"quantization_config": BitsAndBytesConfig(load_in_8bit=True), "dtype": torch.float32}
    assert torch.equal(answers(role), answers(AutoPeftModelForCausalLM.from_pretrained(path, **eight)))
    assert torch.equal(outputs(base.model), before)
    merged = AutoModelForCausalLM.from_pretrained(base.merge(path, tmp_path / "merged").path)
    assert (
        answers(merged).argmax(-1) == answers(role).argmax(-1)
    ).float().mean() > 0.7  # int8 also rounds what it reads


def test_embeddings_of_the_same_size_are_a_roles_own_too(tmp_path):
    base = SharedBase.from_pretrained(base_folder(tmp_path))
    role, before = base.policy(lora(), name="first"), outputs(base.model)
    with torch.no_grad():
        role.get_input_embeddings().weight = torch.nn.Parameter(role.get_input_embeddings().weight + 1)
    role.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    assert torch.equal(outputs(base.policy(init_from=tmp_path / "adapter")), outputs(role))
    assert torch.equal(outputs(base.model), before)


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 3}, "alpha_pattern": {"v_proj": 5}},
        {"use_rslora": True, "modules_to_save": ["norm"]},
        {"task_type": None, "modules_to_save": ["score"]},
        {"target_modules": r".*layers\.0\.self_attn\.q_proj"},
    ],
    ids=["DoRA", "patterns", "further modules", "score in modules_to_save", "one layer"],
)
def test_settings_of_adapters(tmp_path, settings):
    path, saved = grown_adapter(tmp_path, "frozen", "SEQ_CLS", tied=False, **settings)
    base = SharedBase.from_pretrained(tmp_path / "base")
    for loaded in (load_scorer(str(path)), base.reward_model(path).module):
        torch.testing.assert_close(answers(loaded), answers(saved), rtol=0, atol=1e-6)


def test_a_base_that_carries_the_score_head(tmp_path):
    """The adapter's own head is the one that is read, also where the base's has other labels."""
    tiny_reward_model(byte_tokenizer(), num_labels=3).save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    model = tiny_reward_model(byte_tokenizer())
    model.name_or_path = str(tmp_path / "base")
    saved = get_peft_model(model, lora(task_type="SEQ_CLS"))
    saved.save_pretrained(tmp_path / "adapter")
    assert torch.equal(outputs(load_scorer(str(tmp_path / "adapter"))), outputs(saved))


# Bad input


@pytest.mark.parametrize("task", ["CAUSAL_LM", "SEQ_CLS"])
def test_rows_that_are_in_no_file(tmp_path, task):
    """LoRA on the embedding says how many tokens it knew; AutoPeftModel would draw the new ones' own rows at random."""
    path, saved = grown_adapter(tmp_path, "frozen", task, tied=False, target_modules=["q_proj", "embed_tokens"])
    saved.save_pretrained(path, save_embedding_layers=False)
    base = SharedBase.from_pretrained(tmp_path / "base")
    message = r"was trained with 262 tokens, the base has 259, and there is no model\.embed_tokens in its files"
    with pytest.raises(ValueError, match=message):
        base.value_model(init_from=path)
    with pytest.raises(ValueError, match=message):
        load_scorer(str(path), new_head=True) if task == "CAUSAL_LM" else load_scorer(str(path))
    if task == "CAUSAL_LM":
        with pytest.raises(ValueError, match=message):
            generating(tmp_path / "base", path)


def test_another_base(tmp_path):
    """By shape, by depth either way; the names may differ, which is said."""
    path, _ = grown_adapter(tmp_path, "frozen", "CAUSAL_LM", tied=False, target_modules="all-linear")
    for changes, message in (
        ({"hidden_size": 32}, r"--adapter .*does not fit this base: size mismatch"),
        ({"num_hidden_layers": 1}, r"the base has no place for .*layers\.1"),
        ({"num_hidden_layers": 3}, r"(it has 2 layers, and the base 3|it lacks .*layers\.2)"),
    ):
        other = tiny_llama(byte_tokenizer(), **changes)
        other.save_pretrained(tmp_path / "other" / "base")
        with pytest.raises(ValueError, match=message):
            generating(tmp_path / "other" / "base", path)
    tiny_llama(byte_tokenizer()).save_pretrained(tmp_path / "another")
    with pytest.warns(UserWarning, match=r"it was made for .*base, and --model is .*another"):
        generating(tmp_path / "another", path)


def test_an_adapter_without_a_base(tmp_path):
    get_peft_model(
        tiny_reward_model(byte_tokenizer()), LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"])
    ).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"Reward model .*: the adapter .* names no base\. Write its path"):
        load_scorer(str(tmp_path))


def test_an_adapter_with_two_labels(tmp_path):
    base = SharedBase.from_pretrained(base_folder(tmp_path))
    model = tiny_reward_model(byte_tokenizer(), num_labels=2)
    model.name_or_path = base.name
    get_peft_model(model, lora(task_type="SEQ_CLS")).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"has 2 labels: expected 1"):
        load_scorer(str(tmp_path / "adapter"))
    with pytest.raises(ValueError, match=r"has 2 labels: expected 1"):
        base.reward_model(tmp_path / "adapter")
