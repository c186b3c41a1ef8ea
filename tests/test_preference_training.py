"""Labels go into the trainers that learn from them, without a line between."""

import pytest
import torch
from ai_feedback_case import labeler, pairs
from datasets import Dataset
from tiny import byte_tokenizer, tiny_llama, tiny_reward_model
from trl import DPOConfig, DPOTrainer

from trl_ext import ImitationRewardConfig, ImitationRewardTrainer

pytestmark = pytest.mark.filterwarnings("ignore:.*of its probability to the answers")
RUN = {
    "max_steps": 1,
    "per_device_train_batch_size": 2,
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "save_strategy": "no",
}


def labelled(chat: bool) -> Dataset:
    rows = pairs(4).to_list()
    if chat:
        turn = {"prompt": "user", "completion_1": "assistant", "completion_2": "assistant"}
        rows = [{name: [{"role": turn[name], "content": text}] for name, text in row.items()} for row in rows]
    return labeler(chat=chat).label(Dataset.from_list(rows))


def changed(model, before: dict) -> bool:
    return any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("chat", [False, True])
def test_imitation_reward_trainer(chat, tmp_path):
    """Which learns from how sure a label is."""
    tokenizer, labels = byte_tokenizer(), labelled(chat)
    losses = []
    for rows in (labels, labels.remove_columns("chosen_probability")):
        model = tiny_reward_model(tokenizer)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        args = ImitationRewardConfig(
            str(tmp_path / f"{len(losses)}"), **RUN, imitation_coef=0.0, logging_steps=1, learning_rate=0.01
        )
        trainer = ImitationRewardTrainer(model, args, train_dataset=rows, processing_class=tokenizer)
        losses.append(trainer.train().training_loss)
        assert changed(trainer.model, before)
    assert losses[0] != pytest.approx(losses[1], abs=1e-6)


@pytest.mark.parametrize("chat", [False, True])
def test_dpo_trainer(chat, tmp_path):
    tokenizer, path = byte_tokenizer(), tmp_path / "model"
    tiny_llama(tokenizer).save_pretrained(path)  # DPO loads its reference from there
    args = DPOConfig(str(tmp_path), **RUN, learning_rate=0.01)
    trainer = DPOTrainer(str(path), args=args, train_dataset=labelled(chat), processing_class=tokenizer)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    assert trainer.train().training_loss > 0 and changed(trainer.model, before)
