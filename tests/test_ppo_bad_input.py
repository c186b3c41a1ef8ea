"""Each is a ValueError that names the call, what was expected, what came, and what to do."""

import re

import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset
from peft import LoraConfig, PeftModel, get_peft_model
from ppo_case import PROMPTS, even_letters, ppo_trainer, rollout_of
from tiny import byte_tokenizer, tiny_llama, tiny_reward_model, tokenizer_with_options
from transformers import Qwen2Config, Qwen2ForSequenceClassification
from trl import GRPOConfig

from trl_ext import LearnedReward, PPOTrainer, R3Reward
from trl_ext.ppo.ppo_input import check_policy


def test_plain_grpo_config():
    with pytest.raises(ValueError, match=r"PPOTrainer\(args=GRPOConfig\(…\)\): expected a PPOConfig.*Write PPOConfig"):
        PPOTrainer(tiny_llama(byte_tokenizer()), even_letters, GRPOConfig("unused", bf16=False, report_to="none"))


@pytest.mark.parametrize("name", ["tools", "environment_factory"])
def test_tools_and_environments(tmp_path, name):
    with pytest.raises(ValueError, match=f"PPOTrainer\\({name}=…\\): tools and environments are not supported"):
        ppo_trainer(tmp_path, **{name: [even_letters]})


def test_empty_data_set(tmp_path):
    with pytest.raises(ValueError, match="train_dataset=…\\) is empty: expected rows with a column `prompt`"):
        ppo_trainer(tmp_path, prompts=[])


def test_no_prompt_column(tmp_path):
    args = ppo_trainer(tmp_path).args
    with pytest.raises(ValueError, match=r"has columns \['text'\]: expected a column `prompt`. Rename yours"):
        PPOTrainer(tiny_llama(byte_tokenizer()), even_letters, args, Dataset.from_dict({"text": ["a"]}))


def test_fewer_prompts_than_a_batch_of_rollouts(tmp_path):
    with pytest.raises(ValueError, match="has 16 prompts, but one batch of rollouts takes 20"):
        ppo_trainer(tmp_path, per_device_train_batch_size=20)


def test_prompt_longer_than_the_window(tmp_path):
    message = "prompt of row 3 has 252 tokens, which with max_completion_length=5 passes the model's window of 256"
    with pytest.raises(ValueError, match=message):
        ppo_trainer(tmp_path, prompts=[*PROMPTS[:3], "x" * 252, *PROMPTS])
    ppo_trainer(tmp_path, prompts=[*PROMPTS[:3], "x" * 251, *PROMPTS])  # fits


def test_prompt_longer_than_the_window_in_a_stream(tmp_path):
    """Its length is known only when it comes: the batch of rollouts is refused before it is sampled."""
    trainer = ppo_trainer(tmp_path)
    with pytest.raises(ValueError, match="has 300 tokens"):
        rollout_of(trainer, [{"prompt": "x" * 300}] * 4)


def test_conversational_prompt_longer_than_the_window(tmp_path):
    with pytest.raises(ValueError, match="prompt of row 1 has"):
        ppo_trainer(tmp_path, prompts=[[{"role": "user", "content": "x" * n}] for n in [9, 250] * 4])


def test_prompt_longer_than_the_window_by_an_option_of_the_template(tmp_path):
    options = {"prompts": [[{"role": "user", "content": "x" * 244}]] * 4, "processing_class": tokenizer_with_options()}
    ppo_trainer(tmp_path, **options)
    with pytest.raises(ValueError, match="prompt of row 0 has 253 tokens"):
        ppo_trainer(tmp_path, chat_template_kwargs={"shout": True}, **options)


def test_no_row_was_scored(tmp_path):
    trainer = ppo_trainer(tmp_path, reward_funcs=lambda completions, **_: [None] * len(completions))
    with pytest.raises(ValueError, match="no reward function scored any of the 4 completions"):
        trainer.train()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "good"])
def test_bad_score_names_its_row(tmp_path, bad):
    def grader(completions, **columns):
        return [1.0, bad, 1.0, 1.0]

    with pytest.raises(ValueError, match=f"Reward function 'grader' returned {bad!r} for row 1"):
        ppo_trainer(tmp_path, reward_funcs=grader).train()


def test_scores_of_another_number(tmp_path):
    with pytest.raises(ValueError, match="returned 1 rewards for 4 completions"):
        ppo_trainer(tmp_path, reward_funcs=lambda completions, **_: [1.0]).train()


def test_not_a_reward(tmp_path):
    with pytest.raises(ValueError, match="3 is neither a function nor a reward model nor the path of one"):
        ppo_trainer(tmp_path, reward_funcs=[3])


def test_no_reward_at_all(tmp_path):
    with pytest.raises(ValueError, match="No reward source provided"):
        ppo_trainer(tmp_path, reward_funcs=None)


def test_another_number_of_tokenizers_than_of_rewards(tmp_path):
    with pytest.raises(ValueError, match=r"their number \(1\) must match that of the rewards \(2\)"):
        ppo_trainer(tmp_path, reward_funcs=[even_letters] * 2, reward_processing_classes=byte_tokenizer())


def test_reward_model_with_two_labels(tmp_path):
    tokenizer = byte_tokenizer()
    model = tiny_reward_model(tokenizer, num_labels=2)
    with pytest.raises(ValueError, match="label"):
        ppo_trainer(tmp_path, reward_funcs=model, reward_processing_classes=tokenizer)
    with pytest.raises(ValueError, match="label"):
        LearnedReward(model, tokenizer)


def test_value_model_with_two_labels(tmp_path):
    with pytest.raises(ValueError, match="it has 2 labels; a value is one number"):
        ppo_trainer(tmp_path, value_model=tiny_reward_model(byte_tokenizer(), num_labels=2))


def test_value_model_with_another_vocabulary(tmp_path):
    model = tiny_reward_model(byte_tokenizer(), vocab_size=300)
    with pytest.raises(ValueError, match=r"a vocabulary of 300 tokens, but reads the policy's own tokens .*259"):
        ppo_trainer(tmp_path, value_model=model)


def test_value_model_with_another_tokenizer(tmp_path):
    """The same number of tokens, but others."""
    tokenizer = byte_tokenizer()
    tiny_reward_model(tokenizer).save_pretrained(tmp_path / "value")
    text = tokenizer.backend_tokenizer.to_str().replace('"!":3,"\\"":4', '"!":4,"\\"":3')
    tokenizer.save_pretrained(tmp_path / "value")
    (tmp_path / "value" / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match="it has another tokenizer, but reads the policy's own tokens"):
        ppo_trainer(tmp_path, value_model=str(tmp_path / "value"))


def test_value_model_of_one_family_with_padded_embeddings(tmp_path):
    """The same tokenizer beside it: more rows in its embedding are no other vocabulary."""
    tokenizer = byte_tokenizer()
    tiny_reward_model(tokenizer, vocab_size=272).save_pretrained(tmp_path / "value")
    tokenizer.save_pretrained(tmp_path / "value")
    ppo_trainer(tmp_path, value_model=str(tmp_path / "value"))


def test_frozen_value_model(tmp_path):
    model = tiny_reward_model(byte_tokenizer()).requires_grad_(False)
    with pytest.raises(ValueError, match="all of it is frozen, so the critic could not learn"):
        ppo_trainer(tmp_path, value_model=model)


def test_images(tmp_path):
    with pytest.raises(ValueError, match="a column of images, which are not supported"):
        ppo_trainer(tmp_path, columns={"image": [None] * len(PROMPTS)})


def test_policy_that_is_no_decoder_of_text():
    policy = tiny_llama(byte_tokenizer())
    with pytest.raises(ValueError, match="a vision-language model is not supported"):
        check_policy(policy, sees_images=True)
    policy.config.is_encoder_decoder = True
    with pytest.raises(ValueError, match="an encoder–decoder model is not supported"):
        check_policy(policy, sees_images=False)


def test_scheduler_of_ones_own(tmp_path):
    optimizer = torch.optim.SGD(tiny_llama(byte_tokenizer()).parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    with pytest.raises(ValueError, match=r"Give the optimizer alone, \(optimizer, None\)"):
        ppo_trainer(tmp_path, optimizers=(optimizer, schedule))


def test_long_prompt_to_evaluate(tmp_path):
    with pytest.raises(ValueError, match=r"eval_dataset=…\): the prompt of row 1 has 300 tokens"):
        ppo_trainer(tmp_path, eval_dataset=Dataset.from_dict({"prompt": ["a", "x" * 300]}))


def test_value_model_without_a_score_head(tmp_path):
    policy = tiny_llama(byte_tokenizer())
    policy.config.num_labels = 1
    with pytest.raises(ValueError, match="expected a sequence-classification model with a `score` head"):
        ppo_trainer(tmp_path, value_model=policy)


@pytest.mark.parametrize("wrap", [lambda model, tokenizer: model, LearnedReward])
def test_value_model_that_is_also_the_reward(tmp_path, wrap):
    tokenizer = byte_tokenizer()
    model = tiny_reward_model(tokenizer)
    with pytest.raises(ValueError, match="also one of reward_funcs, and training it would change the scores"):
        ppo_trainer(tmp_path, value_model=model, reward_funcs=[even_letters, wrap(model, tokenizer)])


def test_frozen_adapter(tmp_path):
    get_peft_model(tiny_llama(byte_tokenizer()), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    frozen = PeftModel.from_pretrained(tiny_llama(byte_tokenizer()), tmp_path)
    with pytest.raises(ValueError, match=r"the adapter is frozen.*is_trainable=True"):
        ppo_trainer(tmp_path, model=frozen)


def test_r3_without_its_columns(tmp_path):
    with pytest.raises(ValueError, match="query_type"):
        ppo_trainer(tmp_path, reward_funcs=R3Reward(max_completion_length=5))


def test_r3_for_another_completion_length(tmp_path):
    with pytest.raises(
        ValueError, match=r"R3Reward\(max_completion_length=512\) in a trainer with max_completion_length=5"
    ):
        ppo_trainer(tmp_path, reward_funcs=[R3Reward(max_completion_length=512)])


def test_a_stream_is_accepted(tmp_path):
    stream = IterableDataset.from_generator(lambda: ({"prompt": prompt} for prompt in PROMPTS * 10))
    trainer = ppo_trainer(tmp_path)
    PPOTrainer(trainer.model, even_letters, trainer.args, stream, processing_class=trainer.processing_class).train()


def test_a_value_model_saved_without_a_tokenizer_is_taken_by_its_vocabulary(tmp_path):
    """transformers makes an empty tokenizer for a folder of Qwen2's kind that has none, which is not another one."""
    config = Qwen2Config(
        vocab_size=len(byte_tokenizer()), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, num_labels=1, pad_token_id=0,
    )  # fmt: skip
    Qwen2ForSequenceClassification(config).save_pretrained(tmp_path / "value")
    trainer = ppo_trainer(tmp_path / "run", value_model=str(tmp_path / "value"))
    assert trainer.critic.own_model is not None


SHAREGPT = [{"from": "human", "value": "What is 2+2?"}]


def test_prompts_of_another_shape(tmp_path):
    """Wherever they come in; the shapes are those of test_prompt_rows.py."""
    bad = Dataset.from_dict({"prompt": [SHAREGPT] * 8})
    message = r": the prompt of row 0 is \[{'from': .* messages of ShareGPT's. Convert it: dataset = "
    trainer = ppo_trainer(tmp_path)
    for name, wrong in {
        "train_dataset": bad,
        "train_dataset=": bad.to_iterable_dataset(),
        "eval_dataset": bad,
        "eval_dataset['easy']": {"easy": bad},
    }.items():
        given = {"train_dataset": Dataset.from_dict({"prompt": PROMPTS})} | {name.split("[")[0].strip("="): wrong}
        with pytest.raises(ValueError, match=re.escape(f"PPOTrainer({name.strip('=')}=…)") + message):
            PPOTrainer(trainer.model, even_letters, trainer.args, processing_class=byte_tokenizer(), **given)
    with pytest.raises(ValueError, match=r"PPOTrainer\(batch of rollouts=…\): the prompt of row 1 is None"):
        rollout_of(trainer, [{"prompt": "go"}, {"prompt": None}] * 2)
    with pytest.raises(
        ValueError, match=r"train_dataset=…\): expected one data set, got a DatasetDict of \['train'\]"
    ):
        PPOTrainer(trainer.model, even_letters, trainer.args, DatasetDict({"train": bad}))
    with pytest.raises(ValueError, match=r"eval_dataset=…\) has columns \['text'\]: expected a column `prompt`"):
        ppo_trainer(tmp_path, eval_dataset=Dataset.from_dict({"text": PROMPTS}))
    with pytest.raises(ValueError, match=r"eval_dataset\['long'\]=…\): the prompt of row 0 has 300 tokens"):
        ppo_trainer(tmp_path, eval_dataset={"long": Dataset.from_dict({"prompt": ["x" * 300]})})


def test_parts_of_text_are_text(tmp_path):
    """Also to the template, which writes them as Python's lists, and to rewards."""
    seen = []

    def reward(prompts, **columns):
        seen.extend(prompts)
        return [0.0] * len(prompts)

    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    trainer = ppo_trainer(tmp_path, prompts=[parts] * 4, reward_funcs=reward)
    assert trainer.train_dataset["prompt"][0] == [{"role": "user", "content": "ab"}]
    rollout_of(trainer, [{"prompt": parts}] * 4)  # of a stream
    assert seen == [[{"role": "user", "content": "ab"}]] * 4
