"""Whoever samples from messages stops where the turn is closed, and so does whoever is given the saved model."""

import json
import warnings

import pyarrow.parquet as pq
import pytest
from self_training_case import trainer as raft_trainer
from transformers import AutoModelForCausalLM, GenerationConfig
from turn_case import answer_of, chat_llama, chat_tokenizer, messages, turn_end_of

from trl_ext.cli import main
from trl_ext.generation.protocol import Part, Policy, Sampling
from trl_ext.generation.transformers_generator import TransformersGenerator
from trl_ext.generation.vllm_generator import VLLMGenerator

TOKENIZER = chat_tokenizer()
END = turn_end_of(TOKENIZER)
CHATS = messages("say it", "why?", "tell me more", "go") * 4
SOON, AT_ONCE = 1.0, 4.0  # with about every sixth token that is sampled; with the first
ANNOUNCED = r"closes an assistant's turn with '<end_of_turn>'"


def ids_of(chat) -> list[int]:
    return Policy(None, TOKENIZER).prompt_ids(chat)


def in_config(folder) -> list[int]:
    return GenerationConfig.from_pretrained(folder).eos_token_id


def same_score(completions, **columns):
    return [1.0] * len(completions)


def stops_there(folder) -> bool:
    """Whether the saved model, loaded by transformers alone, answers with the turn's end and no more."""
    return answer_of(AutoModelForCausalLM.from_pretrained(folder), ids_of(CHATS[0])) == [END]


def test_without_it_the_model_would_go_on():
    assert answer_of(chat_llama(AT_ONCE), ids_of(CHATS[0])) == [END] * 6


# -- RAFT


def test_raft(tmp_path):
    options = {"processing_class": TOKENIZER, "prompts": CHATS[:8], "save_strategy": "epoch", "learning_rate": 1e-6}
    options["reward_funcs"] = same_score
    with pytest.warns(UserWarning, match=f"RAFTTrainer: .*{ANNOUNCED}") as said:
        trainer = raft_trainer(tmp_path, model=chat_llama(AT_ONCE), **options)
        trainer.train()
    assert sum("closes an assistant's turn" in str(warning.message) for warning in said) == 1
    samples = pq.read_table(tmp_path / "grow-000.parquet").to_pylist()
    assert all(sample["completion_ids"] == [END] and sample["ended"] for sample in samples)
    trainer.save_model(tmp_path / "saved")
    checkpoints = list(tmp_path.glob("checkpoint-*"))
    for folder in (tmp_path / "saved", *checkpoints):
        assert in_config(folder) == [1, END] and stops_there(folder)
    assert checkpoints


def test_raft_on_text_is_as_before(tmp_path):
    trainer = raft_trainer(tmp_path, model=chat_llama(AT_ONCE), processing_class=TOKENIZER, num_stages=1)
    trainer.train()
    assert trainer.model.generation_config.eos_token_id in (1, [1])  # transformers makes a list of it
    samples = pq.read_table(tmp_path / "grow-000.parquet").to_pylist()
    assert all(sample["completion_ids"] == [END] * 6 and not sample["ended"] for sample in samples)


# -- generators


def sample(*prompts, strength=SOON, **sampling):
    policy = Policy(chat_llama(strength), TOKENIZER)
    sampling = Sampling(num_generations=4, max_completion_length=8, **sampling)
    ((_, samples),) = TransformersGenerator().generate(
        [Part(0, tuple(range(len(prompts))), prompts)], sampling, policy
    )
    return samples


def test_the_transformers_generator():
    with pytest.warns(UserWarning, match=ANNOUNCED) as said:
        samples = sample(*CHATS[:4])
    assert len(said) == 1
    for one in samples:
        assert END not in one["completion_ids"][:-1]
        assert one["ended"] == (one["completion_ids"][-1] in (1, END))
    assert {one["ended"] for one in samples} == {True, False}


def test_the_transformers_generator_on_text():
    with warnings.catch_warnings(action="error"):
        samples = sample("say it", strength=AT_ONCE, temperature=0.0)
    assert [one["completion_ids"] for one in samples] == [[END] * 8] * 4


@pytest.mark.parametrize(("prompts", "ends"), [(tuple(CHATS[:2]), [1, END]), (("say it", "why?"), [1])])
@pytest.mark.filterwarnings("ignore:Policy.end_token_ids")
def test_vllm_is_told(tmp_path, prompts, ends):
    spec = VLLMGenerator()._specification(
        [Part(0, (0, 1), prompts)], Sampling(), Policy(chat_llama(SOON), TOKENIZER), tmp_path
    )
    assert spec["end_token_ids"] == ends


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chat_llama(AT_ONCE).save_pretrained("model")
    TOKENIZER.save_pretrained("model")
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": chat}) + "\n" for chat in CHATS[:4]))
    with pytest.warns(UserWarning, match=ANNOUNCED):
        main(
            [
                "generate",
                "--prompts",
                "prompts.jsonl",
                "--output",
                "out.parquet",
                "--model",
                "model",
                "--device",
                "cpu",
                "--temperature",
                "0",
                "--num-generations",
                "1",
                "--max-completion-length",
                "6",
            ]
        )
    assert [one["completion_ids"] for one in pq.read_table("out.parquet").to_pylist()] == [[END]] * 4
