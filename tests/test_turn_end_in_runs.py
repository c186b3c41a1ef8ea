"""Whoever samples from messages stops where the turn is closed, and so does whoever is given the saved model."""

import json
import warnings

import pyarrow.parquet as pq
import pytest
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
