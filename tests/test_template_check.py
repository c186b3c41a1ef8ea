"""A chat template: missing where messages need one, said before anything is sampled; its options, where nothing does."""

import pytest
from datasets import Dataset
from ppo_case import ppo_trainer
from self_training_case import trainer as raft_trainer
from tiny import byte_tokenizer, tiny_llama, tiny_reward_model, tokenizer_with_options

from trl_ext import ImitationRewardConfig, ImitationRewardTrainer, evaluate, score
from trl_ext.generation import TransformersGenerator, VLLMGenerator
from trl_ext.generation.protocol import Part, Policy, Sampling
from trl_ext.rewards.learned_reward import LearnedReward
from trl_ext.sequences.template_check import check_has_template, check_template_is_asked

LACKS = "the tokenizer has no chat template, without which messages do not become tokens. Give one"
TEXT = ["go", "why?", "yes", "tell"]
CHAT = [[{"role": "user", "content": text}] for text in TEXT]
ANSWER = [{"role": "assistant", "content": "b"}]
LOUD = {"shout": True}


def bare():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    return tokenizer


def level(completions, **columns):
    return [1.0] * len(completions)


def learned(tokenizer):
    return LearnedReward(tiny_reward_model(tokenizer), tokenizer)


def reward_trainer(folder, imitation_coef):
    rows = [{"prompt": CHAT[0], "chosen": ANSWER, "rejected": [{"role": "assistant", "content": "c"}]}]
    args = ImitationRewardConfig(
        str(folder), use_cpu=True, bf16=False, report_to="none", imitation_coef=imitation_coef
    )
    model = tiny_reward_model(bare(), tie_word_embeddings=True)
    ImitationRewardTrainer(model, args, train_dataset=Dataset.from_list(rows), processing_class=bare())


def sampled_by(generator):
    policy = Policy(tiny_llama(bare()), bare())
    list(generator.generate([Part(0, (0,), (CHAT[0],))], Sampling(1, 4), policy))


@pytest.mark.parametrize(
    ("call", "make"),
    [
        ("PPOTrainer.train_dataset=…", lambda folder: ppo_trainer(folder, prompts=CHAT, processing_class=bare())),
        (
            "PPOTrainer.train_dataset=….: LearnedReward",
            lambda folder: ppo_trainer(folder, prompts=CHAT, reward_funcs=learned(bare())),
        ),
        (
            "PPOTrainer.ptx_dataset=…",
            lambda folder: ppo_trainer(
                folder, processing_class=bare(), ptx_coef=1.0, ptx_dataset=Dataset.from_dict({"messages": [ANSWER]})
            ),
        ),
        ("RAFTTrainer.train_dataset=…", lambda folder: raft_trainer(folder, prompts=CHAT, processing_class=bare())),
        (
            "RAFTTrainer.train_dataset=….: LearnedReward",
            lambda folder: raft_trainer(folder, prompts=CHAT, reward_funcs=learned(bare())),
        ),
        ("ImitationRewardTrainer: the train dataset", lambda folder: reward_trainer(folder, 0.0)),
        ("ImitationRewardTrainer: the train dataset", lambda folder: reward_trainer(folder, 0.1)),
        (
            "evaluate.dataset=…",
            lambda folder: evaluate(
                tiny_llama(bare()), Dataset.from_dict({"prompt": CHAT}), level, max_completion_length=4, tokenizer=bare()
            ),
        ),
        ("LearnedReward 'LlamaForS", lambda folder: score(learned(bare()), CHAT[:1], [ANSWER])),
        ("TransformersGenerator.generate", lambda folder: sampled_by(TransformersGenerator())),
        ("VLLMGenerator.generate", lambda folder: sampled_by(VLLMGenerator())),
    ],
)  # fmt: skip
def test_messages_without_a_template(tmp_path, call, make):
    with pytest.raises(ValueError, match=f"^{call}.*: {LACKS}"):
        make(tmp_path)


def test_text_needs_none():
    check_has_template(["a", "b"], bare(), call="it")
    assert learned(bare())(prompts=["a"], completions=["b"])


def evaluated(folder, prompts, kwargs):
    dataset = Dataset.from_dict({"prompt": prompts})
    tokenizer = tokenizer_with_options()
    evaluate(
        tiny_llama(tokenizer),
        dataset,
        level,
        max_completion_length=2,
        tokenizer=tokenizer,
        chat_template_kwargs=kwargs,
    )


def given_to(make):
    def run(folder, prompts, kwargs):
        make(
            folder,
            prompts=prompts,
            reward_funcs=level,
            chat_template_kwargs=kwargs,
            processing_class=tokenizer_with_options(),
        )

    return run


@pytest.mark.parametrize(
    ("call", "run"),
    [("PPOTrainer", given_to(ppo_trainer)), ("RAFTTrainer", given_to(raft_trainer)), ("evaluate.*", evaluated)],
)
def test_options_of_a_template_that_nothing_goes_through(tmp_path, call, run):
    with pytest.raises(ValueError, match=rf"^{call}, chat_template_kwargs={{'shout': True}}: they do nothing"):
        run(tmp_path, TEXT, LOUD)
    run(tmp_path, CHAT, LOUD)
    run(tmp_path, TEXT, {})


def test_text_that_is_learned_beside_may_ask_the_template(tmp_path):
    beside = {"ptx_coef": 1.0, "chat_template_kwargs": LOUD, "processing_class": tokenizer_with_options()}
    ppo_trainer(tmp_path, ptx_dataset=Dataset.from_dict({"messages": [ANSWER]}), **beside)
    with pytest.raises(ValueError, match=r"chat_template_kwargs=.* they do nothing"):
        ppo_trainer(tmp_path, ptx_dataset=Dataset.from_dict({"text": ["a line"]}), **beside)


def test_one_conversation_is_enough():
    check_template_is_asked(["text", CHAT[0]], LOUD, call="it")
