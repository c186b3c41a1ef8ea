"""Model cards: what a run learned from and reached; nothing in them leads nowhere or tells of the machine."""

import re
from pathlib import Path

import pytest
from checkpoint_case import KINDS, STEPS, local_base, make
from datasets import Dataset, IterableDataset
from hub_case import hub  # noqa: F401 - a fixture
from huggingface_hub import ModelCard

from trl_ext import ReSTTrainer
from trl_ext.trainer_kit.card_files import CARD, CardFacts, complete_card, hub_id, public_name, results

PAPERS = {"ppo": ("PPO", "1707.06347"), "raft": ("RAFT", "2304.06767"), "reward": ("Imitation Reward", "2307.04964")}
LINKS = re.compile(r"\]\((https?://[^)]*)\)")
TEMPLATE = (
    "---\nbase_model: {base}\ntags:\n- generated_from_trainer\n---\n"
    "a version of [{base}](https://huggingface.co/{base}) on the [{data}](https://huggingface.co/datasets/{data}) dataset.\n"
    'pipeline(model="None")\n\n### Framework versions\n\n- TRL: 1\n'
)


def checked(card: Path, kind: str, tmp_path: Path) -> str:
    text = card.read_text()
    name, paper = PAPERS[kind]
    assert str(tmp_path) not in text and "None" not in text
    assert f"trained with {name}, a method introduced in [" in text and f"arXiv:{paper}" in text
    assert "version of `sft-base` (a local model)" in text
    assert {"trl-ext", "generated_from_trainer"} <= set(ModelCard.load(card).data.tags)
    assert all("None" not in link and "sft-base" not in link for link in LINKS.findall(text))
    return text


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("kind", KINDS)
def test_cards_of_a_run_and_of_what_it_pushes(kind, lora, tmp_path, hub):  # noqa: F811
    model = local_base(tmp_path / "sft-base", kind)
    one = make(
        kind, tmp_path / "run", model=model, lora=lora, push_to_hub=True, hub_strategy="checkpoint", logging_steps=1
    )
    one.train()
    one.push_to_hub(dataset_name=str(tmp_path / "rows.jsonl"))
    places = (tmp_path / "run", tmp_path / "run" / f"checkpoint-{STEPS}", hub, hub / "last-checkpoint")
    texts = [checked(place / CARD, kind, tmp_path) for place in places]
    assert "16 rows of `prompt`" in texts[0] and "- read from: `rows.jsonl`" in texts[0]
    assert kind == "reward" or "- rewards: `even_letters`" in texts[0]
    shown = {"ppo": "score", "raft": "grow/score", "reward": "accuracy"}[kind]
    assert re.search(rf"\| {shown} \| \S+ \(step \d\) \| \S+ \(step \d\) \|", texts[2])
    assert 'model="me/run"' in texts[2]
    assert (ModelCard.load(hub / CARD).data.library_name == "peft") == lora
    files = {path.name for path in hub.iterdir()}
    assert ("adapter_model.safetensors" if lora else "model.safetensors") in files
    assert not {"ppo_critic.safetensors", "_trl_ext_log.jsonl"} & files
    for record in hub.rglob("trl_ext_run.json"):
        assert str(tmp_path) not in record.read_text()


def test_a_readme_of_somebody_else_stays_beside_an_adapter(tmp_path):
    (tmp_path / CARD).write_text("# My project")
    one = make("raft", tmp_path, lora=True)
    with pytest.warns(UserWarning, match="is not a trainer's and stays as it is"):
        one.create_model_card()
    one.save_model()
    assert (tmp_path / CARD).read_text() == "# My project"


def test_rest_cites_its_paper():
    assert ReSTTrainer._paper["id"] in ReSTTrainer._paper["citation"]


@pytest.mark.parametrize(
    ("options", "name", "paper"),
    [
        ({"importance_clip": 0.2}, "RAFT++", "2504.11343"),
        ({"restart_from_base": True}, "ReST^EM", "2312.06585"),
        ({}, None, None),
    ],
)
def test_a_variant_cites_its_paper_beside_its_methods(options, name, paper, tmp_path):
    one = make("raft", tmp_path, **options)
    one.create_model_card()
    text = (tmp_path / CARD).read_text()
    assert "eprint = {arXiv:2304.06767}" in text and text.count("@article") == 1 + (paper is not None)
    assert "eprint = {arXiv:" in text and "introduced in [RAFT: Reward" in text
    if paper is None:
        assert "Its settings are those of" not in text
    else:
        assert f"Its settings are those of {name}, introduced in [" in text and f"eprint = {{arXiv:{paper}}}" in text


def test_saved_without_a_run_the_card_is_named_as_the_folder(tmp_path):
    make("reward", tmp_path / "mine").save_model(str(tmp_path / "else"))
    text = (tmp_path / "else" / CARD).read_text()
    assert "# Model Card for mine" in text and "a model without a name" in text and 'model="else"' in text
    assert "### Results" not in text


@pytest.mark.parametrize(
    ("base", "told"),
    [
        ("org/name", "[org/name](https://huggingface.co/org/name)"),
        ("/gone/sft", "`sft` (a local model)"),
        ("/c/models--org--name/snapshots/0f1e", "[org/name](https://huggingface.co/org/name)"),
    ],
)
def test_what_a_base_is_called(base, told, tmp_path):
    (tmp_path / CARD).write_text(TEMPLATE.format(base=base, data="/home/me/x.jsonl"))
    complete_card(tmp_path, facts(base=base))
    text = (tmp_path / CARD).read_text()
    assert f"a version of {told} on the `x.jsonl` dataset" in text and "/gone" not in text and "/home" not in text
    assert ModelCard.load(tmp_path / CARD).data.base_model == ("org/name" if "org" in told else None)


def facts(**changed) -> CardFacts:
    return CardFacts(
        **{"base": "", "is_adapter": False, "data_name": None, "data": {}, "rewards": (), "results": {}} | changed
    )


def test_streams_and_several_held_out_sets_are_told_of(tmp_path):
    (tmp_path / CARD).write_text(TEMPLATE.format(base="None", data="a/b"))
    stream, two = (
        IterableDataset.from_generator(lambda: iter([{"prompt": "a"}])),
        Dataset.from_dict({"prompt": ["a", "b"]}),
    )
    complete_card(tmp_path, facts(bits=8, data={"training": stream, "held out": {"easy": two, "hard": two}}))
    text = (tmp_path / CARD).read_text()
    assert (
        "Its base was loaded in 8 bits" in text
        and "- training: a stream" in text
        and "- held out, hard: 2 rows of `prompt`" in text
    )
    assert text.index("### Data") < text.index("### Framework versions") and text.count("### Framework versions") == 1


def test_results_are_the_first_and_the_last_that_were_logged():
    log = [
        {"step": 1, "score": 0.5},
        {"step": 2, "eval_score": 3.0},
        {"step": 3, "score": 1.5, "other": 1},
        {"step": 4, "score": "?"},
    ]
    assert results(log, ["score"]) == {"score": ((1, 0.5), (3, 1.5)), "eval_score": ((2, 3.0), (2, 3.0))}


def test_hub_ids_and_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert hub_id("gpt2") and hub_id("a/b") and not any(map(hub_id, ("org/name", "/a/b", "../a", "a/b/c", "", None)))
    assert [public_name(name) for name in ("a/b", "org/name", ".", "", None)] == [
        "a/b",
        "name",
        tmp_path.name,
        None,
        None,
    ]
