"""Models, data and rewards are told apart by what they are, not by where they lie or how a new head began."""

from functools import partial

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig, get_peft_model
from tiny import byte_tokenizer, tiny_llama, tiny_reward_model

from trl_ext import LearnedReward, LengthIncentive, R3Reward, RelevanceReward, RepetitionPenalty
from trl_ext.rewards.reward_callables import reward_callables
from trl_ext.rewards.reward_fingerprints import reward_settings
from trl_ext.trainer_kit.fingerprints import data_fingerprint, model_fingerprint, reference_fingerprint
from trl_ext.trainer_kit.run_changes import differences

ROWS = [{"prompt": "a", "n": 1}, {"prompt": "b", "n": 2}]


def test_equal_rows_are_equal_wherever_they_come_from(tmp_path):
    rows = Dataset.from_list(ROWS)
    rows.save_to_disk(tmp_path / "rows")
    assert data_fingerprint(rows) == data_fingerprint(Dataset.load_from_disk(tmp_path / "rows"))
    assert data_fingerprint(rows) != data_fingerprint(rows.select([1, 0]))  # their order is the run's
    assert data_fingerprint(rows) != data_fingerprint(rows.rename_column("n", "m"))
    assert data_fingerprint(None) is None


def test_of_a_stream_the_first_row_counts():
    first, other = (IterableDataset.from_generator(lambda n=n: iter([{"n": n}, {"n": 3}])) for n in (1, 2))
    assert data_fingerprint(first) == data_fingerprint(first) != data_fingerprint(other)


def test_a_new_head_and_a_new_adapter_may_be_random():
    model = tiny_reward_model(byte_tokenizer())
    before = model_fingerprint(model)
    with torch.no_grad():
        model.score.weight.add_(1)
    assert model_fingerprint(model) == before
    with torch.no_grad():
        model.model.embed_tokens.weight.add_(1)
    assert model_fingerprint(model) != before
    one, other = (get_peft_model(tiny_llama(byte_tokenizer()), LoraConfig(r=2)) for _ in range(2))
    with torch.no_grad():
        next(p for p in one.parameters() if p.requires_grad).add_(1)
    assert model_fingerprint(one) == model_fingerprint(other)


def test_the_reference_is_apart_from_the_model():
    one = get_peft_model(tiny_llama(byte_tokenizer()), LoraConfig(r=2))
    before = model_fingerprint(one)
    assert reference_fingerprint(one) is None
    one.add_adapter("ref", LoraConfig(r=2))
    assert model_fingerprint(one) == before and reference_fingerprint(one) is not None


def test_a_tensor_without_content():
    with torch.device("meta"):
        model = torch.nn.Linear(2, 2)
    assert model_fingerprint(model) != model_fingerprint(torch.nn.Linear(2, 2).requires_grad_(False))


def plus(completions, bonus=0.0, **columns):
    return [bonus for _ in completions]


def settings(reward) -> object:
    (found,) = reward_settings(reward_callables(reward, None, ARGS)).values()
    return found


class ARGS:
    reward_weights, max_completion_length, device = None, 8, torch.device("cpu")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (RepetitionPenalty(ngram=2), RepetitionPenalty(ngram=3)),
        (partial(plus, bonus=1.0), partial(plus, bonus=2.0)),
        (RelevanceReward("me/encoder"), RelevanceReward("me/other")),
    ],
)
def test_settings_of_a_reward(one, other):
    assert settings(one) == settings(one) != settings(other)


def test_what_changes_no_score_is_left_out(tmp_path):
    for place in ("here", "moved"):
        (tmp_path / place / "encoder").mkdir(parents=True)
    here = RelevanceReward(str(tmp_path / "here" / "encoder"), batch_size=2, device="cpu")
    assert settings(here) == settings(RelevanceReward(tmp_path / "moved" / "encoder"))
    assert settings(plus) == "plus"  # what it does may be mended


def test_a_folder_is_what_is_in_it_wherever_it_lies(tmp_path):
    one, moved, other = (tmp_path / place / "encoder" for place in ("one", "moved", "other"))
    for folder, seed in ((one, 0), (moved, 0), (other, 1)):
        tiny_llama(byte_tokenizer(), seed=seed).save_pretrained(folder)
    assert settings(RelevanceReward(one)) == settings(RelevanceReward(str(moved))) != settings(RelevanceReward(other))
    for text in ("", ".", "x" * 5000):  # no folder's name
        assert settings(partial(plus, bonus=text))["bonus"] == ("" if text == "." else text)


def without(name: str, settings: object) -> object:
    """Settings as a version wrote them that did not have such an option."""
    if isinstance(settings, list):
        return [without(name, part) for part in settings]
    if not isinstance(settings, dict):
        return settings
    return {key: without(name, value) for key, value in settings.items() if key != name}


@pytest.mark.parametrize(("kind", "option"), [(R3Reward, "length_cap"), (LengthIncentive, "cap")])
def test_a_run_from_before_the_cap_goes_on(kind, option):
    """An older record has neither R³'s option nor LI's in its routes; at None it is the same run, with a cap another."""
    before = without("length_cap", without("cap", settings(kind())))
    assert option not in before and differences(before, settings(kind())) == []
    changed = differences(before, settings(kind(**{option: 70})))
    assert f"{option}: None then, 70 now" in changed


def test_a_reward_model_is_its_weights():
    one, same, other = (
        LearnedReward(tiny_reward_model(byte_tokenizer(), seed=s), byte_tokenizer()) for s in (0, 0, 1)
    )
    assert settings(one) == settings(same) != settings(other)
    same.module.score.weight.data.add_(1)  # a head that was trained
    assert settings(one) != settings(same)
