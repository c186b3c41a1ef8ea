"""Two processes between which DeepSpeed shards a reward model must take the step that one takes."""

import pytest
import torch
from sharded_case import in_two
from test_imitation_processes import STEP, as_one_process, step_in_two
from test_imitation_reward_trainer import config, trainer_of, weights
from tiny import tiny_llama, tiny_reward_model

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.slow  # for an environment of its own: `.ci/run deepspeed`

# A model of the user's, loaded before the config is made, or by its path, which transformers would cut as it loads it.
BEGIN = """
import os
import sys
import pytest
from cpu_sharding import shard_on_cpu
shard_on_cpu(engine="{engine}")
from test_imitation_processes import STEP
from sharded_reward_case import own_head
from test_imitation_reward_trainer import byte_tokenizer, config, logged, tiny_reward_model, trainer_of
from trl_ext.trainer_kit.sharding import is_in_pieces
from two_processes import leave

folder, tokenizer = sys.argv[1], byte_tokenizer()
options = STEP | dict(per_device_train_batch_size=2, gradient_accumulation_steps=2, use_cpu=False) | {options}
model = {model} or tiny_reward_model(tokenizer, tie_word_embeddings=True)
args, head = config(folder, **options), {head}
"""
TRAIN = """
trainer = trainer_of(folder, tokenizer, model, args=args, imitation_head=head)
trainer.train(resume_from_checkpoint={resume})
assert any(map(is_in_pieces, trainer.model.parameters())) == ("{engine}" == "ZeRO-3")
trainer.save_model(folder)
if trainer.is_world_process_zero():
    print("imitation_loss", logged(trainer, "imitation_loss")[0])
leave()
"""


def script(engine: str, *, text: str = TRAIN, model: str | None = None, head="None", resume=None, **options) -> str:
    told = {"model": repr(model), "head": head, "options": options, "resume": repr(resume)}
    return (BEGIN + text).format(engine=engine, **told)


RUNS = {
    "ZeRO-1": {"tied": {"tied": True}},
    "ZeRO-2": {"full": {}, "tied, adapter": {"tied": True, "full": False}},
    "ZeRO-3": {"full": {}, "adapter": {"full": False}},
    "FSDP2": {"full": {}},
}


def test_two_processes_train_like_one(tmp_path):
    """Of ZeRO-2 each process has the whole embedding, which may then be the head."""
    as_one_process(tmp_path, RUNS)


def test_what_zero_would_lose_or_round_is_refused_or_kept(tmp_path):
    in_two(tmp_path / "two", "bad_input_of_zero", case="sharded_reward_case", engine="ZeRO-2")


def test_a_path_is_read_whole(tmp_path, tokenizer):
    paths = [str(tmp_path / name) for name in ("reward", "policy")]
    models = tiny_reward_model(tokenizer, tie_word_embeddings=True), tiny_llama(tokenizer)
    for path, model in zip(paths, models, strict=True):
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
    args = config(tmp_path / "one", per_device_train_batch_size=8, **STEP)
    one = trainer_of(tmp_path, tokenizer, paths[0], args=args, imitation_head=paths[1])
    one.train()
    (tmp_path / "two").mkdir()
    _, trained = step_in_two(tmp_path / "two", script("ZeRO-3", model=paths[0], head=repr(paths[1])))
    torch.testing.assert_close(trained, weights(one), atol=1e-6, rtol=1e-4)


REFUSED = """
with pytest.raises(ValueError, match=r"the vocabulary head is the embedding, which FSDP and ZeRO-3 cut"):
    trainer_of(folder, tokenizer, model, args=args)
cut = type(model)._from_config(model.config)
with pytest.raises(ValueError, match=r"ImitationRewardTrainer\\(model=Llama.*has cut it while it was loaded"):
    trainer_of(folder, tokenizer, cut, args=args, imitation_head=own_head())
model.save_pretrained(folder)
if os.environ["RANK"] == "0":
    print("imitation_loss 0")
leave()
"""


def test_what_zero_3_has_cut_is_refused(tmp_path):
    step_in_two(tmp_path, script("ZeRO-3", text=REFUSED))
