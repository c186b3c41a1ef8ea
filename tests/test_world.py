"""The demo's world, its texts, and the tiny models that the package ships."""

import random
import re
from itertools import chain

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from trl_ext.demo import make_assets
from trl_ext.demo.answers import FLAWS, GOOD, SFT_SHARES, preference_rows, sample_questions, sft_rows
from trl_ext.demo.contrastive import contrastive_loss, embed, random_crop, triplet_relevances
from trl_ext.demo.corpus import document, documents, pretraining_texts
from trl_ext.demo.make_tokenizers import encoder_tokenizer, policy_tokenizer
from trl_ext.demo.pretraining import fact_recall
from trl_ext.demo.world import ASSETS, ATTRIBUTES, OPEN, answered_right, load_world, make_world, questions

TRUE_SHARE, RECALL, TRIPLETS = 0.7, 0.9, 0.97  # of sampled sentences; of facts; of held-out questions


@pytest.fixture(scope="module")
def world():
    return make_world(seed=0)


@pytest.fixture(scope="module")
def policy():
    return AutoModelForCausalLM.from_pretrained(ASSETS / "policy").eval(), AutoTokenizer.from_pretrained(
        ASSETS / "policy"
    )


@pytest.fixture(scope="module")
def encoder():
    return AutoModel.from_pretrained(ASSETS / "encoder").eval(), AutoTokenizer.from_pretrained(ASSETS / "encoder")


# The world


def test_a_seed_makes_one_world(world):
    assert make_world(seed=0) == world
    assert make_world(seed=1) != world


def test_subjects_are_unique(world):
    assert len({entity.subject for entity in world}) == len(world)


def test_a_question_is_in_one_split_in_all_its_wordings(world):
    train, held_out = (questions(world, held_out=held_out) for held_out in (False, True))
    asked = [{(row["subject"], row["attribute"]) for row in rows} for rows in (train, held_out)]
    assert not asked[0] & asked[1]
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in held_out}
    assert 0.1 < len(held_out) / (len(train) + len(held_out)) < 0.3
    assert {row["query_type"] for row in held_out} == {row["query_type"] for row in train} == {"open", "closed"}


def test_prompts_are_unique(world):
    prompts = [row["prompt"] for held_out in (False, True) for row in questions(world, held_out=held_out)]
    assert len(set(prompts)) == len(prompts)


def test_every_reference_is_right(world):
    rows = [row for held_out in (False, True) for row in questions(world, held_out=held_out)]
    closed = [row for row in rows if row["query_type"] == "closed"]
    assert all(answered_right(row["reference"], attribute=row["attribute"], answer=row["answer"]) for row in closed)
    descriptions = {entity.subject: entity.description() for entity in world}
    assert all(row["reference"] == descriptions[row["subject"]] for row in rows if row["query_type"] == "open")


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        (" Mia's cat is black.", True),
        (" Black? It is black.", True),
        (" Mia's cat is white.", False),
        (" Mia's cat is black. Tom's dog is white.", False),  # commits itself to nothing
        (" Mia's cat is blackish.", False),
        (" Mia's cat eats fish.", False),
        ("", False),
    ],
)
def test_answered_right(completion, right):
    assert answered_right(completion, attribute="pet.color", answer="black") is right


# Answers


def test_rows_follow_their_seed(world):
    assert sft_rows(world, count=20, seed=3) == sft_rows(world, count=20, seed=3) != sft_rows(world, count=20, seed=4)
    rows = [preference_rows(world, held_out=True, count=20, seed=seed) for seed in (3, 3, 4)]
    assert rows[0] == rows[1] != rows[2]
    rows = [sample_questions(world, held_out=True, count=20, seed=seed) for seed in (3, 3, 4)]
    assert rows[0] == rows[1] != rows[2]


def test_nothing_that_is_trained_on_asks_a_held_out_question(world):
    held_out = {row["prompt"] for row in questions(world, held_out=True)}
    rows = sft_rows(world, count=2000, seed=0) + preference_rows(world, held_out=False, count=2000, seed=0)
    assert not held_out & {row["prompt"] for row in rows}
    text = " ".join(pretraining_texts(world, count=500, seed=0))
    assert not [prompt for prompt in held_out if prompt in text]


def test_chosen_is_better_than_rejected(world):
    """Right where the rejected answer is wrong or adrift; where the question is open, of several true facts."""
    rows = preference_rows(world, held_out=False, count=400, seed=0)
    asked = {row["prompt"]: row for row in questions(world, held_out=False)}
    assert {row["flaw"] for row in rows} == {flaw.__name__ for flaws in FLAWS.values() for flaw in flaws}
    for row in rows:
        question = asked[row["prompt"]]
        if question["query_type"] == "closed":
            key = {"attribute": question["attribute"], "answer": question["answer"]}
            assert answered_right(row["chosen"], **key)
            # what is said of another entity may by chance have the same value
            assert row["flaw"] in ("other_entity", "rambling") or not answered_right(row["rejected"], **key)
        else:
            sentences = re.findall(r"[^.]+\.", row["chosen"])
            assert len(set(sentences)) == len(sentences) >= 4
            assert all(question["subject"] in sentence for sentence in sentences)
            assert row["chosen"] != row["rejected"]


def test_sft_answers_are_mediocre(world):
    """As many closed answers are right as SFT_SHARES says: the good ones, and ramblings that happen to agree."""
    asked = {row["prompt"]: row for row in questions(world, held_out=False)}
    rows = [(row, asked[row["prompt"]]) for row in sft_rows(world, count=4000, seed=0)]
    closed = [(row, q) for row, q in rows if q["query_type"] == "closed"]
    right = sum(answered_right(r["completion"], attribute=q["attribute"], answer=q["answer"]) for r, q in closed)
    shares = SFT_SHARES["closed"]
    assert right / len(closed) == pytest.approx(shares[GOOD["closed"]] / sum(shares.values()), abs=0.06)


def test_all_is_asked_before_anything_is_asked_again(world):
    rows = [row["prompt"] for row in sample_questions(world, held_out=True, count=100, seed=0)]
    counts = [rows.count(prompt) for prompt in set(rows)]
    closed = [row["prompt"] for row in questions(world, held_out=True) if row["query_type"] == "closed"]
    assert len(closed) >= 50 and max(rows.count(prompt) for prompt in closed) == 1
    assert max(counts) - 1 <= 50 // 3


# Tokenizers


def everything(world):
    rows = sft_rows(world, count=300, seed=0)
    return [row["prompt"] + row["completion"] for row in rows] + pretraining_texts(world, count=300, seed=0)


def test_decoding_gives_the_text_back(world):
    tokenizer, texts = policy_tokenizer(world), everything(world)
    assert tokenizer.batch_decode(tokenizer(texts).input_ids) == texts


def test_a_completion_has_the_same_tokens_after_its_prompt(world):
    tokenizer = policy_tokenizer(world)
    for row in sft_rows(world, count=300, seed=0):
        prompt, completion = tokenizer(row["prompt"]).input_ids, tokenizer(row["completion"]).input_ids
        assert tokenizer(row["prompt"] + row["completion"]).input_ids == prompt + completion


def test_no_word_of_the_world_is_unknown(world):
    texts = everything(world) + [document(*about, random.Random(0)) for about in documents(world)]
    for tokenizer in (policy_tokenizer(world), encoder_tokenizer(world)):
        assert tokenizer.unk_token_id not in set(chain(*tokenizer(texts).input_ids))


def test_special_tokens_are_distinct(world):
    tokenizer = policy_tokenizer(world)
    ids = [tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id]
    assert len(set(ids)) == 4
    assert set(tokenizer("What color is Mia's cat?")) == {"input_ids", "attention_mask"}


def test_full_descriptions_fit_the_completion_limit(world):
    tokenizer = policy_tokenizer(world)
    assert max(len(tokenizer(" " + entity.description()).input_ids) for entity in world) <= 48


# Contrastive training


def test_contrastive_loss_by_hand():
    queries, keys = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    # scores / 0.5 = [[4, 0], [0, 0]]; rows: −log softmax = log(1 + e^−4) and log 2, columns the same
    expected = (torch.log1p(torch.tensor(-4.0).exp()) + torch.tensor(2.0).log()) / 2
    torch.testing.assert_close(contrastive_loss(queries, keys, temperature=0.5), expected)


def test_a_crop_is_words_in_their_order():
    text, rng = " ".join(str(i) for i in range(40)), random.Random(0)
    for _ in range(100):
        words = [int(word) for word in random_crop(text, rng).split()]
        assert words == sorted(words) and 1 <= len(words) <= 16 and words[-1] - words[0] < 16


def test_padding_does_not_change_a_vector(encoder):
    texts = ["Mia lives here.", "What do you know about Mia? Mia has a cat. Mia works as a baker."]
    with torch.no_grad():
        together, alone = embed(*encoder, texts)[:1], embed(*encoder, texts[:1])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


# What is shipped


def test_the_shipped_facts_are_those_of_seed_0(world):
    assert load_world() == world
    assert all(set(entity.held_out) <= {*ATTRIBUTES[entity.kind], OPEN} for entity in load_world())


def test_the_shipped_tokenizers_are_those_of_the_world(world, policy, encoder):
    assert policy[1].get_vocab() == policy_tokenizer(world).get_vocab()
    assert encoder[1].get_vocab() == encoder_tokenizer(world).get_vocab()
    text = "What color is the hat of Mia? Mia's hat is black."
    assert policy[1].decode(policy[1](text).input_ids) == text.replace("'s hat", "'s hat")


def test_assets_are_small_and_safe():
    files = [file for file in ASSETS.rglob("*") if file.is_file()]
    assert {file.suffix for file in files} == {".json", ".safetensors"}
    assert sum(file.stat().st_size for file in files) <= 4 * 10**6


def test_the_policy_knows_the_facts(world, policy):
    assert fact_recall(*policy, world) > RECALL


def test_the_policy_writes_true_sentences(world, policy):
    """Sampled answers to open questions are readable: most of their sentences are facts, word for word."""
    model, tokenizer = policy
    facts = {entity.sentence(name, form) for entity in world for name in entity.facts for form in range(2)}
    prompts = [row["prompt"] for row in sample_questions(world, held_out=True, count=64, seed=0)]
    torch.manual_seed(0)
    batch = tokenizer(prompts, padding=True, return_tensors="pt")
    ids = model.generate(**batch, max_new_tokens=48, do_sample=True, top_k=0)[:, batch.input_ids.size(1) :]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    sentences = [s.strip() for text in texts for s in re.findall(r"[^.?]+\.", text)]
    assert sum(sentence in facts for sentence in sentences) / len(sentences) > TRUE_SHARE


def test_the_encoder_ranks_right_answers_above_others(world, encoder):
    right, wrong = triplet_relevances(*encoder, world, seed=0)
    assert (right > wrong).float().mean() > TRIPLETS
    assert right.min() > 0 and 0.8 < right.mean() < 1.5  # R³ multiplies relevance with a length
    assert wrong.mean() < 0.5 * right.mean()


def test_the_script_repeats_itself(world, tmp_path):
    """A short run of the training, twice: the same bytes."""
    torch.set_num_threads(1)
    for name in ("once", "again"):
        make_assets.make_policy(world, tmp_path / name / "policy", seed=0, texts=600)
        make_assets.make_encoder(world, tmp_path / name / "encoder", seed=0, steps=3)
    for model in ("policy", "encoder"):
        once, again = ((tmp_path / name / model / "model.safetensors").read_bytes() for name in ("once", "again"))
        assert once == again
