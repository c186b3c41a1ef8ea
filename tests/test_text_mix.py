"""PPO-ptx: text beside rollouts, by hand, in any accumulation, resumed where it was."""

import pytest
import torch
from datasets import Dataset, IterableDataset
from ppo_case import logged, ppo_trainer, rollout_of
from tiny import byte_tokenizer, tiny_llama, tokenizer_with_options

from trl_ext.ppo.text_mix import TextMix, tokenised_row

TEXT = Dataset.from_dict({"text": ["some words", "others", "and a longer line of them", "x", "yes"]})


def mix(dataset=TEXT, **changes) -> TextMix:
    return TextMix(dataset, byte_tokenizer(), **{"max_length": 64, "batch_size": 2, "seed": 0} | changes)


@pytest.mark.parametrize(
    ("row", "text", "learned"),
    [
        ({"text": "ab"}, "ab<eos>", "ab<eos>"),
        ({"text": "ab<eos>"}, "ab<eos>", "ab<eos>"),
        ({"text": "ab", "messages": None}, "ab<eos>", "ab<eos>"),  # where other rows have messages
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}, "u:hi\n", None),
        ({"prompt": "ab", "completion": "cd"}, "abcd<eos>", "cd<eos>"),
        (
            {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]},
            "u:hi\na:yo<eos>",
            None,
        ),
        (
            {"prompt": [{"role": "user", "content": "hi"}], "completion": [{"role": "assistant", "content": "yo"}]},
            "u:hi\na:yo<eos>",
            "yo<eos>",
        ),
    ],
)
def test_rows(row, text, learned):
    tokenizer = byte_tokenizer()
    ids = tokenizer(text)["input_ids"]
    expected = tokenizer(learned or text)["input_ids"]
    assert tokenised_row(row, tokenizer) == {
        "input_ids": ids, "labels": [-100] * (len(ids) - len(expected)) + expected,
    }  # fmt: skip


def test_each_pass_reads_every_row_once_in_another_order():
    text = mix(batch_size=1)
    passes = [[tuple(text.batch(5 * p + i)["input_ids"][0].tolist()) for i in range(5)] for p in range(4)]
    assert all(len(set(rows)) == 5 for rows in passes) and len({tuple(rows) for rows in passes}) > 1
    again = mix(batch_size=1)
    assert tuple(again.batch(7)["input_ids"][0].tolist()) == passes[1][2]


def test_tokens_are_those_with_something_before_them():
    text = mix(batch_size=5)
    assert text.tokens(0) == sum(len(row) for row in TEXT["text"])  # the end token makes up for the first
    assert mix(batch_size=5, max_length=4).tokens(0) == 3 + 3 + 3 + 1 + 3


@pytest.mark.parametrize(("micro_batch", "accumulation"), [(4, 1), (2, 2), (1, 4)])
def test_the_gradient_is_that_of_the_mean_over_the_window(tmp_path, micro_batch, accumulation):
    """With nothing else in the loss: as of one batch of all rows, however it is cut."""
    trainer = ppo_trainer(
        tmp_path, per_device_train_batch_size=micro_batch, gradient_accumulation_steps=accumulation,
        ptx_coef=0.5, ptx_dataset=TEXT, max_steps=1, num_iterations=1,
    )  # fmt: skip
    trainer.model.train()
    trainer.rollouts.sampled, trainer.current_gradient_accumulation_steps = 1, accumulation
    for step in range(accumulation):
        trainer._step = step
        (trainer.args.ptx_coef * trainer._text_loss(trainer.model)).backward()  # what Trainer sums over micro-batches
    model = tiny_llama(byte_tokenizer())
    rows = mix(batch_size=4, seed=trainer.args.seed).batch(0)
    logits = model(rows["input_ids"], attention_mask=rows["attention_mask"]).logits.log_softmax(-1)[:, :-1]
    labels = rows["labels"][:, 1:]
    own = labels != -100
    nll = -logits.gather(2, labels.clamp(min=0).unsqueeze(2)).squeeze(2)[own].mean()
    (0.5 * nll).backward()
    for (name, mine), (_, expected) in zip(trainer.model.named_parameters(), model.named_parameters(), strict=True):
        torch.testing.assert_close(mine.grad, expected.grad, msg=name)


def test_the_configs_options_reach_the_template(tmp_path):
    rows = Dataset.from_list([{"messages": [{"role": "user", "content": "hi"}]}])
    options = {"ptx_coef": 0.5, "ptx_dataset": rows, "processing_class": tokenizer_with_options()}
    text = ppo_trainer(tmp_path, chat_template_kwargs={"shout": True}, **options).text
    assert text.rows[0]["input_ids"] == byte_tokenizer()("LOUDu:hi\n")["input_ids"]


def test_it_is_added_to_the_loss(tmp_path):
    trainer = ppo_trainer(tmp_path, ptx_coef=0.5, ptx_dataset=TEXT)
    rollout = rollout_of(trainer)
    trainer.current_gradient_accumulation_steps = 1
    mixed = trainer._compute_loss(trainer.model, rollout)
    text, trainer.text = trainer._text_loss(trainer.model), None
    torch.testing.assert_close(mixed, trainer._compute_loss(trainer.model, rollout) + 0.5 * text)


def test_it_is_learned_and_keeps_the_policy_able_to_write_it(tmp_path):
    def ptx_losses(coef):
        trainer = ppo_trainer(
            tmp_path / str(coef), ptx_coef=coef, ptx_dataset=TEXT, max_steps=30, per_device_train_batch_size=8,
        )  # fmt: skip
        trainer.train()
        return logged(trainer, "ptx_loss")

    strong, weak = ptx_losses(1.0), ptx_losses(1e-6)
    assert strong[-1] < 0.7 * strong[0] and strong[-1] < 0.8 * weak[-1]


def test_the_critics_warm_up_reads_none(tmp_path):
    trainer = ppo_trainer(tmp_path, ptx_coef=1.0, ptx_dataset=TEXT, critic_warmup_rollouts=1, max_steps=8)
    trainer.train()
    assert len(logged(trainer, "ptx_loss")) == 4


def test_resumed_where_it_was(tmp_path):
    options = {"ptx_coef": 0.5, "ptx_dataset": TEXT, "max_steps": 6, "save_strategy": "steps", "save_steps": 1}
    whole = ppo_trainer(tmp_path, **options)
    whole.train()
    resumed = ppo_trainer(tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ptx_coef": 0.1}, r"PPOTrainer\(ptx_dataset=None\) with ptx_coef=0\.1: expected a data set of text"),
        ({"ptx_dataset": TEXT}, r"with ptx_coef=0: the text would not be learned\. Set ptx_coef"),
        ({"ptx_coef": -1.0, "ptx_dataset": TEXT}, r"ptx_coef=-1\.0\): it must be in"),
        ({"ptx_coef": 1.0, "ptx_dataset": Dataset.from_dict({"text": []})}, r"got Dataset without any"),
        ({"ptx_coef": 1.0, "ptx_dataset": {"train": TEXT}}, r"expected one data set, got a dict of \['train'\]"),
        *(
            ({"ptx_coef": 1.0, "ptx_dataset": Dataset.from_dict(columns)}, message)
            for columns, message in (
                ({"text": ["a", None]}, r"ptx_dataset=…\): the `text` of row 1 is None: expected text"),
                (
                    {"text": [[{"role": "user", "content": "a"}]]},
                    r"`text` of row 0 is \[.* go into a column `messages`",
                ),
                (
                    {"messages": [[{"from": "human", "value": "a"}]]},
                    r"`messages` of row 0 is .* messages of ShareGPT's",
                ),
                ({"messages": ["a"]}, r"the `messages` of row 0 is text\. Rename the column `text`"),
                ({"prompt": [None], "completion": ["a"]}, r"the prompt of row 0 is None: expected text or messages"),
                ({"prompt": ["a"], "completion": [None]}, r"the completion of row 0 is None: expected text or"),
                ({"prompt": ["a"], "completion": [[{"role": "assistant", "content": "b"}]]}, "and its prompt is text"),
            )
        ),
        (
            {"ptx_coef": 1.0, "ptx_dataset": IterableDataset.from_generator(lambda: [])},
            r"got IterableDataset\. A stream",
        ),
        (
            {"ptx_coef": 1.0, "ptx_dataset": Dataset.from_dict({"words": ["a"]})},
            r"has columns \['words'\]: expected `text`",
        ),
        (
            {
                "ptx_coef": 1.0,
                "ptx_dataset": Dataset.from_dict({"prompt": ["abc"], "completion": ["d"]}),
                "ptx_max_length": 2,
            },
            r"no row has a token to learn within ptx_max_length=2\. Raise it",
        ),
    ],
)
def test_bad_input(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        ppo_trainer(tmp_path, **options)
