"""Tokens without an embedding: refused where a text has one, by name, and else left alone."""

import pytest
import torch
from datasets import Dataset
from resized_case import grown_adapter, grown_tokenizer
from shared_case import quiet
from tiny import byte_tokenizer, tiny_config, tiny_llama, tiny_reward_model
from transformers import BertConfig, BertModel

from trl_ext import (
    ImitationRewardConfig,
    ImitationRewardTrainer,
    LearnedReward,
    PPOConfig,
    PPOTrainer,
    RAFTConfig,
    RAFTTrainer,
    RelevanceReward,
    SharedBase,
)
from trl_ext.generation import TransformersGenerator
from trl_ext.generation.protocol import Part, Policy, Sampling
from trl_ext.sequences.answer_rows import answer_rows
from trl_ext.sequences.vocabulary import check_ids, check_vocabulary, is_token, unread_tokens

SMALL = byte_tokenizer()  # whose size the models have
SIZES = (
    r"the tokenizer has 262 tokens and the model's embedding 259 rows, so that '{}' \(id {}\) cannot be read\. Call "
)
ASKED = {"<new1>": SIZES.format("<new1>", 260), "<new2>": SIZES.format("<new2>", 261)}


def padding_tokenizer():
    """The tokenizer to which a pad token was added, as many recipes do."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    return tokenizer


def length(*, completions, **columns):
    return [float(len(completion)) for completion in completions]


# By hand


def test_what_is_beyond():
    config = tiny_config(SMALL)
    assert unread_tokens(SMALL, config) == {}
    assert unread_tokens(grown_tokenizer(), config) == {"<new0>": 259, "<new1>": 260, "<new2>": 261}
    assert unread_tokens(grown_tokenizer(), tiny_config(SMALL, vocab_size=320)) == {}  # padded
    assert unread_tokens(grown_tokenizer(), tiny_config(SMALL, vocab_size=261)) == {"<new2>": 261}


def test_a_token_is_refused_where_a_text_has_it():
    """A tokenizer with tokens that the model never reads, as Gemma's has for images, goes with it."""
    tokenizer, config = grown_tokenizer(), tiny_config(SMALL)
    check_vocabulary(tokenizer, config, call="Here", pad_token_id=tokenizer.pad_token_id)
    check_ids([[], tokenizer("hello")["input_ids"]], tokenizer, config, call="Here")
    with pytest.raises(ValueError, match="Here: " + ASKED["<new2>"]):
        check_ids([[1], tokenizer("<new1><new2>")["input_ids"]], tokenizer, config, call="Here")
    with pytest.raises(ValueError, match=r"Here: there is the id -1, and no token has a negative one\. Give a"):
        check_ids([[1], [2, -1]], tokenizer, config, call="Here")


@pytest.mark.parametrize("role", ["eos_token", "pad_token"])
def test_what_a_tokenizer_makes_of_itself(role):
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({role: "<mine>"})
    with pytest.raises(
        ValueError, match=r"Here: the tokenizer has 260 tokens .* 259 rows, so that '<mine>' \(id 259\)"
    ):
        check_vocabulary(tokenizer, tiny_config(SMALL), call="Here", pad_token_id=tokenizer.pad_token_id)
    if role == "pad_token":  # where nothing is padded with it
        check_vocabulary(tokenizer, tiny_config(SMALL), call="Here")


def test_words_beyond():
    with pytest.raises(ValueError, match=r"the tokenizer has 259 tokens and the model's embedding 200 rows, so that"):
        check_vocabulary(SMALL, tiny_config(SMALL, vocab_size=200), call="Here")


@pytest.mark.parametrize(("id", "expected"), [(None, False), (-1, False), (0, True), (258, True), (259, False)])
def test_is_token(id, expected):
    assert is_token(id, tiny_config(SMALL)) is expected


# Whoever reads


def ppo(folder, tokenizer, prompt="a", model=None, **given):
    args = PPOConfig(**quiet(folder, num_generations=2, max_completion_length=4, max_steps=1))
    rows = Dataset.from_dict({"prompt": [prompt] * 4})
    return PPOTrainer(model or tiny_llama(SMALL), length, args, rows, processing_class=tokenizer, **given)


def raft(folder, tokenizer, prompt="a"):
    args = RAFTConfig(**{k: v for k, v in quiet(folder).items() if k != "max_steps"}, max_completion_length=4)
    rows = Dataset.from_dict({"prompt": [prompt] * 4})
    return RAFTTrainer(tiny_llama(SMALL), length, args, rows, processing_class=tokenizer)


def reward(folder, tokenizer, prompt="a"):
    rows = Dataset.from_dict({"prompt": [prompt] * 4, "chosen": ["good"] * 4, "rejected": ["bad"] * 4})
    args = ImitationRewardConfig(**quiet(folder), max_length=64)
    model = tiny_reward_model(SMALL, tie_word_embeddings=True)
    return ImitationRewardTrainer(model, args, train_dataset=rows, processing_class=tokenizer)


@pytest.mark.filterwarnings("ignore:ImitationRewardTrainer. the pretrained vocabulary head has no row")
@pytest.mark.parametrize("trainer", [ppo, raft, reward])
def test_trainers(tmp_path, trainer):
    with pytest.raises(ValueError, match=r"Trainer\((model|train_dataset)=…\): " + ASKED["<new1>"]):
        trainer(tmp_path, grown_tokenizer(), "a<new1>")
    with pytest.raises(ValueError, match=r"Trainer\(model=…\): the tokenizer has 260 tokens .*'\[PAD\]' \(id 259\)"):
        trainer(tmp_path, padding_tokenizer())
    trainer(tmp_path / "fine", grown_tokenizer())


def answered(folder, answer, *, name, mix=False):
    args = RAFTConfig(**quiet(folder, max_completion_length=4, mix_dataset=mix) | {"max_steps": -1})
    rows = Dataset.from_dict({"prompt": ["a"] * 4, "completion": ["b"] * 4})
    given = {"train_dataset": rows, name: Dataset.from_dict({"prompt": ["a"] * 4, "completion": ["b"] * 3 + [answer]})}
    return RAFTTrainer(tiny_llama(SMALL), length, args, processing_class=grown_tokenizer(), **given)


@pytest.mark.parametrize("case", [{"name": "train_dataset", "mix": True}, {"name": "eval_dataset"}])
def test_answers_that_are_learned_or_evaluated(tmp_path, case):
    call = rf"RAFTTrainer\({case['name']}=…\): "
    with pytest.raises(ValueError, match=call + ASKED["<new1>"]):
        answered(tmp_path, "<new1>", **case)
    answered(tmp_path / "fine", "b", **case)
    answered(tmp_path / "not read", "<new1>", name="train_dataset")


def test_answers_to_evaluate_later(tmp_path):
    trainer = answered(tmp_path, "b", name="eval_dataset")
    with pytest.raises(ValueError, match=r"RAFTTrainer\.evaluate\(eval_dataset=…\): " + ASKED["<new1>"]):
        trainer.evaluate(Dataset.from_dict({"prompt": ["a"], "completion": ["<new1>"]}))


def test_reference_answers():
    with pytest.raises(ValueError, match="T: " + ASKED["<new2>"]):
        answer_rows(["a", "b"], [None, "<new2>"], grown_tokenizer(), tiny_config(SMALL), call="T")


def test_messages(tmp_path):
    tokenizer = grown_tokenizer()
    tokenizer.chat_template = "{{ '<new' + '1>' }}" + tokenizer.chat_template
    with pytest.raises(ValueError, match=ASKED["<new1>"]):
        ppo(tmp_path, tokenizer, [{"role": "user", "content": "a"}])


def test_text_beside(tmp_path):
    args = {"ptx_dataset": Dataset.from_dict({"text": ["a<new1>"]})}
    with pytest.raises(ValueError, match=r"PPOTrainer\(ptx_dataset=…\): " + ASKED["<new1>"]):
        config = PPOConfig(**quiet(tmp_path, num_generations=2, max_completion_length=4, ptx_coef=0.1))
        rows = Dataset.from_dict({"prompt": ["a"] * 4})
        PPOTrainer(tiny_llama(SMALL), length, config, rows, processing_class=grown_tokenizer(), **args)


def test_a_critic_reads_the_policys_tokens(tmp_path):
    """Its tokenizer may have fewer, if its embedding has rows for all."""
    policy = tiny_llama(SMALL, vocab_size=262)
    SMALL.save_pretrained(tmp_path / "value")
    tiny_reward_model(SMALL, vocab_size=262).save_pretrained(tmp_path / "value")
    ppo(tmp_path / "fine", grown_tokenizer(), "a<new1>", policy, value_model=str(tmp_path / "value"))
    path, _ = grown_adapter(tmp_path, "frozen", "SEQ_CLS", tied=False)
    ppo(tmp_path / "fine too", grown_tokenizer(), "a<new1>", policy, value_model=str(path))
    tiny_reward_model(SMALL, vocab_size=200).save_pretrained(tmp_path / "value")
    with pytest.raises(ValueError, match=r"PPOTrainer\(value_model=.*the model's embedding 200 rows"):
        ppo(tmp_path, grown_tokenizer(), "a", policy, value_model=str(tmp_path / "value"))


def test_a_learned_reward():
    reward = LearnedReward(tiny_reward_model(SMALL), grown_tokenizer())
    assert len(reward(prompts=["a"], completions=["b"])) == 1
    with pytest.raises(ValueError, match=r"LearnedReward\('LlamaForSequenceClassification'\): " + ASKED["<new1>"]):
        reward(prompts=["a"], completions=["<new1>"])
    with pytest.raises(ValueError, match=r"'\[PAD\]' \(id 259\) cannot be read"):
        LearnedReward(tiny_reward_model(SMALL, pad_token_id=None), padding_tokenizer())


def test_an_encoder():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    encoder = BertModel(BertConfig(vocab_size=len(SMALL), **sizes))
    reward = RelevanceReward(encoder, tokenizer=grown_tokenizer())
    assert len(reward(prompts=["a"], completions=["b"])) == 1
    with pytest.raises(ValueError, match=r"RelevanceReward\(encoder=…\): " + ASKED["<new1>"]):
        reward(prompts=["a"], completions=["<new1>"])


def test_a_generator():
    sampling = Sampling(num_generations=1, max_completion_length=2)
    policy = Policy(tiny_llama(SMALL), grown_tokenizer())
    with pytest.raises(ValueError, match=ASKED["<new1>"]):
        list(TransformersGenerator().generate([Part(0, (0,), ("a<new1>",))], sampling, policy))


def test_a_shared_base():
    with pytest.raises(ValueError, match=r"SharedBase\(''\): the tokenizer has 259 tokens .* 200 rows"):
        SharedBase(tiny_llama(SMALL, vocab_size=200), SMALL)
    SharedBase(tiny_llama(SMALL), padding_tokenizer())  # a role may have grown
