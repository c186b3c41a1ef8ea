"""How many labels a reward model has, its weights say, not its config."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import byte_tokenizer, tiny_llama, tiny_reward_model
from transformers import BertConfig, BertForSequenceClassification

from trl_ext import LearnedReward
from trl_ext.rewards.reward_models import load_scorer

IDS = torch.tensor([byte_tokenizer()("hello")["input_ids"]])


def tiny_bert(num_labels: int) -> BertForSequenceClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=len(byte_tokenizer()), num_labels=num_labels, **sizes)
    return BertForSequenceClassification(config).eval()


MODELS = {"score": lambda labels: tiny_reward_model(byte_tokenizer(), num_labels=labels), "classifier": tiny_bert}
heads = pytest.mark.parametrize("head", MODELS)


def saved(model, folder, *, says: int | None, **how) -> str:
    """A checkpoint whose config says another number of labels than its weights, or none."""
    model.save_pretrained(folder, **how)
    byte_tokenizer().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    for name in ("id2label", "label2id", "num_labels", "architectures"):
        config.pop(name, None)
    if says is not None:
        config["id2label"] = {str(i): f"LABEL_{i}" for i in range(says)}
        config["architectures"] = [type(model).__name__]
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@heads
@pytest.mark.parametrize("says", [None, 1, 2, 3])
@pytest.mark.parametrize("how", [{}, {"max_shard_size": "10KB"}], ids=["one file", "shards"])
def test_one_row_is_one_label(tmp_path, head, says, how):
    model = MODELS[head](1)
    reward = LearnedReward(saved(model, tmp_path, says=says, **how), device="cpu")
    assert reward.module.config.num_labels == 1
    with torch.no_grad():
        assert torch.equal(reward.module(IDS).logits, model(IDS).logits)


@heads
@pytest.mark.parametrize("says", [None, 1, 2])
def test_two_rows_are_two_labels(tmp_path, head, says):
    path = saved(MODELS[head](2), tmp_path, says=says)
    for new_head in (False, True):
        with pytest.raises(ValueError, match=r"Reward model .* has 2 labels: expected 1.*num_labels=1"):
            load_scorer(path, new_head=new_head)


def test_a_torch_file(tmp_path):
    model = MODELS["score"](1)
    path = saved(model, tmp_path, says=None)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with torch.no_grad():
        assert torch.equal(load_scorer(path)(IDS).logits, model(IDS).logits)


def test_a_critic_begins_from_a_one_row_head(tmp_path):
    model = MODELS["score"](1)
    loaded = load_scorer(saved(model, tmp_path, says=None), new_head=True, trainable=True)
    assert torch.equal(loaded.score.weight, model.score.weight) and loaded.score.weight.requires_grad


@heads
@pytest.mark.parametrize("says", [1, 2])
def test_the_head_in_an_adapter(tmp_path, head, says):
    """The base's config, and its own head, say nothing of the adapter's."""
    other, model = MODELS[head](2), MODELS[head](1)
    model.base_model.load_state_dict(other.base_model.state_dict())
    model.name_or_path = saved(other, tmp_path / "base", says=says)
    targets = ["q_proj"] if head == "score" else ["query"]
    model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=targets, init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(load_scorer(str(tmp_path / "adapter"))(IDS).logits, model.eval()(IDS).logits)


@pytest.mark.parametrize("new_head", [False, True], ids=["reward", "critic"])
def test_the_head_of_another_library(tmp_path, new_head):
    """TRL's former value head has a bias, which `score` lacks; to leave it would begin a critic at zero, unsaid."""
    path = saved(tiny_llama(byte_tokenizer()), tmp_path, says=None)
    weights = load_file(tmp_path / "model.safetensors")
    weights |= {"v_head.summary.weight": torch.ones(1, 16), "v_head.summary.bias": torch.ones(1)}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"has a head 'v_head', which LlamaForSequenceClassification does not read"):
        load_scorer(path, new_head=new_head)


def test_weights_of_another_shape_than_the_config_says(tmp_path):
    path = saved(MODELS["score"](1), tmp_path, says=1)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 300}))
    with pytest.raises(
        ValueError, match=r"its model\.embed_tokens\.weight is of shape \[259, 16\], and by its config"
    ):
        load_scorer(path)
