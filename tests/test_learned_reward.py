import pickle
from functools import partial

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from tiny import byte_tokenizer, tiny_llama, tiny_reward_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
)
from trl import GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer, RLOOConfig, RLOOTrainer

from trl_ext import ImitationRewardConfig, ImitationRewardTrainer, SharedBase
from trl_ext.rewards.learned_reward import LearnedReward
from trl_ext.rewards.reward_models import load_scorer


@pytest.fixture
def folder(tmp_path, tokenizer):
    """A saved reward model with its tokenizer."""
    tiny_reward_model(tokenizer).save_pretrained(tmp_path / "my-reward")
    tokenizer.save_pretrained(tmp_path / "my-reward")
    return str(tmp_path / "my-reward")


near = partial(pytest.approx, rel=1e-5, abs=1e-6)


def score_of(module, ids: list[int]) -> float:
    """Of one sequence, alone and unpadded."""
    with torch.no_grad():
        return module(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))).logits.item()


def user(text):
    return [{"role": "user", "content": text}]


def assistant(text):
    return [{"role": "assistant", "content": text}]


# -- what it reads --------------------------------------------------------------------------------------------------


def read(reward, prompt, completion, ended=True) -> str:
    return reward.tokenizer.decode(reward.token_ids(prompt, completion, ended))


@pytest.mark.parametrize("bos", [False, True])
def test_text(bos):
    tokenizer = byte_tokenizer(bos=bos)
    reward, start = LearnedReward(tiny_reward_model(tokenizer), tokenizer), "<bos>" * bos
    assert read(reward, "Why? ", "So.") == f"{start}Why? So.<eos>"
    assert read(reward, "Why? ", "So.", ended=False) == f"{start}Why? So."
    assert read(reward, "Why? ", "So.<eos>") == f"{start}Why? So.<eos>"  # once, as TRL


def test_messages(tokenizer):
    reward = LearnedReward(tiny_reward_model(tokenizer), tokenizer)
    assert read(reward, user("Why?"), assistant("So.")) == "u:Why?\na:So.<eos>"
    assert read(reward, user("Why?"), assistant("So."), ended=False) == "u:Why?\na:So."


def test_template_whose_last_turn_cannot_be_left_open(tokenizer):
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ m.content }}", "{{ m.content[:2] }}")
    reward = LearnedReward(tiny_reward_model(tokenizer), tokenizer)
    assert read(reward, user("Why?"), assistant("So."), ended=False) == "u:Wh\na:So<eos>"


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({}, [True, True, True]),
        ({"completion_ids": [[5, 1], [5, 6], []]}, [True, False, False]),
        ({"completion_ids": [[5, 1], [5, 6], []], "completion_ended": [False, True, True]}, [False, True, True]),
    ],
    ids=["nothing", "sampled tokens", "said so"],
)
def test_which_completions_ended(tokenizer, told, expected):
    """By default; by the last sampled token; by what PPO says, which wins."""
    reward = LearnedReward(tiny_reward_model(tokenizer), tokenizer)
    scores = reward(prompts=["a", "b", "c"], completions=["x", "y", "z"], **told)
    texts = [f"{text}<eos>" if ended else text for text, ended in zip(["ax", "by", "cz"], expected, strict=True)]
    assert scores == near([score_of(reward.module, tokenizer(text)["input_ids"]) for text in texts])


def test_end_tokens_of_another_policy(tokenizer):
    reward = LearnedReward(tiny_reward_model(tokenizer), tokenizer, eos_token_ids=[7, 8])
    assert reward._ended([[5, 7], [8], [5, 1]]) == [True, True, False]


# -- what it says ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["standard", "conversational"])
@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_scores_as_the_trainer_did(tmp_path, kind, pad_is_eos):
    tokenizer = byte_tokenizer(bos=True, pad_is_eos=pad_is_eos)
    rows = [{"prompt": f"{i}: ", "chosen": "good " * (i + 1), "rejected": "bad " * (4 - i)} for i in range(4)]
    if kind == "conversational":
        rows = [
            {"prompt": user(row["prompt"]), "chosen": assistant(row["chosen"]), "rejected": assistant(row["rejected"])}
            for row in rows
        ]
    args = ImitationRewardConfig(
        str(tmp_path), use_cpu=True, bf16=False, max_steps=3, report_to="none", save_strategy="no", max_length=256
    )
    model = tiny_reward_model(tokenizer, tie_word_embeddings=True)
    trainer = ImitationRewardTrainer(model, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.train()
    batch = trainer.data_collator(list(trainer.train_dataset))
    trainer.model.eval()
    with torch.no_grad():
        _, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    trainer.save_model(tmp_path / "saved")

    reward = LearnedReward(str(tmp_path / "saved"), device="cpu", batch_size=3)
    scores = [
        score
        for side in ("chosen", "rejected")
        for score in reward(prompts=[row["prompt"] for row in rows], completions=[row[side] for row in rows])
    ]
    torch.testing.assert_close(torch.tensor(scores), outputs.logits[:, 0], atol=1e-5, rtol=0)


def test_batch_equals_rows_one_by_one(tokenizer):
    reward = LearnedReward(tiny_reward_model(tokenizer), tokenizer, batch_size=2)
    prompts, completions = ["a", "bb", "c", "d", "e"], ["x" * n for n in (30, 1, 7, 0, 12)]
    alone = [reward(prompts=[p], completions=[c])[0] for p, c in zip(prompts, completions, strict=True)]
    assert reward(prompts=prompts, completions=completions) == near(alone)
    tokenizer.padding_side = "left"
    assert reward(prompts=prompts, completions=completions) == near(alone)


def test_long_sequences_lose_their_beginning_with_one_warning(tokenizer):
    reward = LearnedReward(tiny_reward_model(tokenizer), tokenizer, max_length=6)
    with pytest.warns(
        UserWarning, match="1 of 2 sequences are longer than max_length=6 tokens and lose their beg"
    ) as w:
        scores = reward(prompts=["abcdef", "a"], completions=["xyz", "b"])
        assert reward(prompts=["abcdef", "a"], completions=["xyz", "b"]) == scores
    assert len(w) == 1
    assert scores[0] == near(score_of(reward.module, tokenizer("efxyz<eos>")["input_ids"]))
    assert LearnedReward(tiny_reward_model(tokenizer), tokenizer).max_length == 256  # the model's window


def test_empty_everything_has_a_score(tokenizer):
    reward = LearnedReward(tiny_reward_model(tokenizer), tokenizer)
    assert len(reward(prompts=[""], completions=[""], completion_ended=[False])) == 1


def test_mode_and_gradients_are_left_alone(tokenizer):
    model = tiny_reward_model(tokenizer).train()
    model.model.layers[0].eval()  # as someone may have frozen it
    before = {name: module.training for name, module in model.named_modules()}
    modes = []
    model.register_forward_hook(lambda module, *args: modes.append((module.training, torch.is_grad_enabled())))
    LearnedReward(model, tokenizer)(prompts=["a"], completions=["b"])
    assert modes == [(False, False)]
    assert {name: module.training for name, module in model.named_modules()} == before
    assert all(parameter.requires_grad for parameter in model.parameters())


# -- where it comes from --------------------------------------------------------------------------------------------


def test_from_path(folder):
    reward = LearnedReward(folder, device="cpu")
    assert reward.__name__ == "my-reward" and not reward.module.training
    assert reward.tokenizer.eos_token == "<eos>" and reward.module.dtype == torch.float32
    expected = score_of(reward.module, reward.tokenizer("ab<eos>")["input_ids"])
    assert reward(prompts=["a"], completions=["b"]) == near([expected])


def test_pickles_by_path(folder):
    reward = LearnedReward(folder, device="cpu", max_length=7)
    pickled = pickle.dumps(reward)
    assert len(pickled) < 1000  # no weights
    again = pickle.loads(pickled)
    assert again(prompts=["a"], completions=["b"]) == reward(prompts=["a"], completions=["b"])
    assert again.max_length == 7 and again.__name__ == "my-reward"


def test_pickles_an_object_with_its_weights(tokenizer):
    reward = LearnedReward(tiny_reward_model(tokenizer), tokenizer)
    again = pickle.loads(pickle.dumps(reward))
    assert again(prompts=["a"], completions=["b"]) == reward(prompts=["a"], completions=["b"])


def adapter(tmp_path, tokenizer, head: bool = True, causal: bool = False) -> tuple[str, torch.nn.Module]:
    """An adapter folder over a causal base, and the model that was saved in it."""
    tiny_llama(tokenizer).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1, dtype=torch.float32)
    kind = {(True, False): TaskType.SEQ_CLS, (False, False): None, (False, True): TaskType.CAUSAL_LM}[head, causal]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base") if causal else model
    model = get_peft_model(model, LoraConfig(task_type=kind, target_modules=["q_proj"]))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(tmp_path / "adapter")
    return str(tmp_path / "adapter"), model.eval()


def test_from_adapter(tmp_path, tokenizer):
    path, model = adapter(tmp_path, tokenizer)
    reward = LearnedReward(path, device="cpu")  # its tokenizer is the base's
    assert isinstance(reward.module, PeftModel) and reward.__name__ == "adapter"
    expected = score_of(model, tokenizer("ab<eos>")["input_ids"])
    assert reward(prompts=["a"], completions=["b"]) == near([expected])
    assert reward(prompts=["a"], completions=["b"]) == LearnedReward(model, tokenizer)(
        prompts=["a"], completions=["b"]
    )


def test_encoder_reward_model(tmp_path, tokenizer):
    """A model with a pooled head and a tokenizer without end token scores too."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), num_labels=1, **sizes)).eval()
    tokenizer.eos_token = None
    reward = LearnedReward(model, tokenizer)
    expected = score_of(model, tokenizer("ab")["input_ids"])
    assert reward(prompts=["a", "cc"], completions=["b", "dd"])[0] == near(expected)


def test_missing_pad_token_is_set_as_trl_does(tokenizer):
    model = tiny_reward_model(tokenizer, pad_token_id=None)
    LearnedReward(model, tokenizer)
    assert model.config.pad_token_id == tokenizer.pad_token_id
    tokenizer.pad_token, model = None, tiny_reward_model(tokenizer, pad_token_id=None)
    LearnedReward(model, tokenizer)
    assert model.config.pad_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize("wrong", [-1, 259])
def test_a_pad_token_that_is_none_is_set_too(tokenizer, wrong):
    """As older Llamas' configs have it."""
    model = tiny_reward_model(tokenizer)
    model.config.pad_token_id = wrong
    reward = LearnedReward(model, tokenizer)
    assert model.config.pad_token_id == tokenizer.pad_token_id
    alone = [reward(prompts=["a"], completions=[text])[0] for text in ("b", "bbbb")]
    assert reward(prompts=["a", "a"], completions=["b", "bbbb"]) == near(alone)


@pytest.mark.parametrize("shared", [False, True], ids=["path", "shared base"])
def test_an_adapter_reads_the_token_that_it_was_trained_to_read(tmp_path, shared):
    """Training pads with the tokenizer's pad token, here the end, and so reads the token before; the base's config, the
    only one beside an adapter, names another.
    """
    tokenizer = byte_tokenizer(pad_is_eos=True)
    tiny_llama(tokenizer, pad_token_id=0).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    rows = Dataset.from_list([{"prompt": f"{i}: ", "chosen": "good " * i, "rejected": "bad " * 3} for i in (1, 2)])
    args = RewardConfig(
        str(tmp_path), use_cpu=True, bf16=False, max_steps=1, report_to="none", save_strategy="no", learning_rate=0.1
    )
    lora = LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"])
    trainer = RewardTrainer(
        str(tmp_path / "base"), args, train_dataset=rows, processing_class=tokenizer, peft_config=lora
    )
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    batch = trainer.data_collator(list(trainer.train_dataset))
    with torch.no_grad():
        expected = trainer.model.eval()(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:2, 0]

    if shared:
        reward = SharedBase.from_pretrained(tmp_path / "base").reward_model(tmp_path / "saved")
    else:
        reward = LearnedReward(str(tmp_path / "saved"), device="cpu")
    scores = reward(prompts=rows["prompt"], completions=rows["chosen"])
    torch.testing.assert_close(torch.tensor(scores), expected, atol=1e-5, rtol=0)


# -- a critic's model -----------------------------------------------------------------------------------------------


def test_scorer_with_new_head_is_zero(tmp_path, tokenizer):
    tiny_llama(tokenizer).save_pretrained(tmp_path)
    model = load_scorer(str(tmp_path), new_head=True, trainable=True)
    assert model.score.weight.abs().sum() == 0 and model.config.num_labels == 1
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in load_scorer(str(tmp_path), new_head=True).parameters())


@pytest.mark.parametrize("trainable", [False, True])
def test_scorer_from_adapter(tmp_path, tokenizer, trainable):
    path, model = adapter(tmp_path, tokenizer)
    loaded = load_scorer(path, trainable=trainable)
    trained = {name for name, parameter in loaded.named_parameters() if parameter.requires_grad}
    assert trained == ({n for n, p in model.named_parameters() if p.requires_grad} if trainable else set())
    ids = tokenizer("ab")["input_ids"]
    assert score_of(loaded, ids) == near(score_of(model, ids))


def test_scorer_from_a_causal_models_adapter(tmp_path, tokenizer):
    path, model = adapter(tmp_path, tokenizer, head=False, causal=True)
    loaded = load_scorer(path, new_head=True, trainable=True)
    ids = torch.tensor([tokenizer("abc")["input_ids"]])
    with torch.no_grad():
        ours = loaded.get_base_model().model(input_ids=ids).last_hidden_state
        theirs = model.get_base_model().model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(ours, theirs)
    head = loaded.get_base_model().score
    assert all(p.abs().sum() == 0 for p in head.parameters()) and any(p.requires_grad for p in head.parameters())


def test_scorer_takes_model_arguments(folder):
    assert load_scorer(folder, dtype=torch.bfloat16).dtype == torch.bfloat16


# -- in TRL's trainers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("trainer", "config"), [(GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig)])
@pytest.mark.parametrize("conversational", [False, True], ids=["standard", "conversational"])
def test_in_trls_trainers(tmp_path, tokenizer, policy, folder, trainer, config, conversational):
    prompts = [user("Why?") if conversational else "Why? "] * 4
    args = config(
        str(tmp_path / "run"),
        use_cpu=True,
        bf16=False,
        max_steps=1,
        per_device_train_batch_size=4,
        num_generations=2,
        beta=0.0,
        max_completion_length=6,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
    )
    run = trainer(
        model=policy,
        args=args,
        reward_funcs=[LearnedReward(folder, device="cpu")],
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
    )
    run.train()
    assert "rewards/my-reward/mean" in run.state.log_history[0]


# -- bad input ------------------------------------------------------------------------------------------------------


def test_more_than_one_label(tmp_path, tokenizer):
    model = tiny_reward_model(tokenizer, num_labels=3)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has 3 labels: expected 1"):
        LearnedReward(str(tmp_path))
    with pytest.raises(ValueError, match=r"has 3 labels: expected 1"):
        load_scorer(str(tmp_path), new_head=True)
    with pytest.raises(ValueError, match=r"one label, got 3 labels"):
        LearnedReward(model, tokenizer)
    with pytest.raises(ValueError, match=r"LlamaForCausalLM.*one label, got 2 labels"):
        LearnedReward(tiny_llama(tokenizer), tokenizer)


def test_checkpoint_without_score_head(tmp_path, tokenizer):
    tiny_llama(tokenizer).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has no weights for score.weight, which would be random"):
        LearnedReward(str(tmp_path))


def test_adapter_without_score_head(tmp_path, tokenizer):
    path, _ = adapter(tmp_path, tokenizer, head=False)
    with pytest.raises(ValueError, match=r"has no weights for score.weight.*modules_to_save=\['score'\]"):
        LearnedReward(path)


def test_nothing_at_the_path():
    with pytest.raises(ValueError, match=r"Reward model '/nowhere/at/all': expected a folder"):
        LearnedReward("/nowhere/at/all")


def test_no_tokenizer(tmp_path, tokenizer):
    tiny_reward_model(tokenizer).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"found no tokenizer beside the model"):
        LearnedReward(str(tmp_path))
    with pytest.raises(ValueError, match=r"LlamaForSequenceClassification.*found no tokenizer"):
        LearnedReward(tiny_reward_model(tokenizer))


def test_sizes_below_one(tokenizer):
    with pytest.raises(ValueError, match=r"batch_size=0.*expected at least 1"):
        LearnedReward(tiny_reward_model(tokenizer), tokenizer, batch_size=0)


def test_trls_own_reward_model_is_read_alike(tmp_path, tokenizer):
    """A model that TRL's RewardTrainer saved is scored on the tokens that it was trained on."""
    rows = Dataset.from_list([{"prompt": "1: ", "chosen": "yes", "rejected": "no"}] * 2)
    args = RewardConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    trainer = RewardTrainer(tiny_reward_model(tokenizer), args, train_dataset=rows, processing_class=tokenizer)
    reward = LearnedReward(trainer.model, tokenizer)
    assert reward.token_ids("1: ", "yes") == trainer.train_dataset[0]["chosen_ids"]


def test_prompts_of_another_shape():
    reward = LearnedReward(tiny_reward_model(byte_tokenizer()), byte_tokenizer())
    shared, answer = [{"from": "human", "value": "Why?"}], [{"role": "assistant", "content": "So."}]
    with pytest.raises(
        ValueError, match=r"^LearnedReward 'Llama.*': the prompt of row 1 is .* messages of ShareGPT's"
    ):
        reward(prompts=[[{"role": "user", "content": "Why?"}], shared], completions=[answer] * 2)
    with pytest.raises(ValueError, match=r"the completion of row 0 is .* and its prompt is text"):
        reward(prompts=["Why?"], completions=[answer])
