"""The closed loop of the example: its teacher, its recording, and the whole of it in a few steps."""

import json
import random

import pytest
import torch
from from_nothing_endpoint import FIRST_PLACE, quality, recorded, world_judge
from from_nothing_endpoint import PAIR as PAIR_ASKED
from from_nothing_record import CONFIG, RECORDED, SEEDS, Writer
from from_nothing_truth import Known, decided, known_pairs, labels_right, qualities, reward_right, share
from log_prob_server import LogProbServer
from tiny import byte_tokenizer, tiny_llama

from trl_ext.demo import ASSETS
from trl_ext.demo.answers import good_open, preference_rows
from trl_ext.demo.world import load_world, questions
from trl_ext.self_instruct.seed_tasks import read_seeds

WORLD = load_world()
PAIR = "Conversation:\n{}\n\nResponse 1:\n{}\n\nResponse 2:\n{}\n\nWhich response is better? Answer with 1 or 2.\nBetter response:"


def test_quality_by_hand():
    rows = questions(WORLD, held_out=False)
    entities = {entity.subject: entity for entity in WORLD}
    closed = next(row for row in rows if row["query_type"] == "closed")
    entity = entities[closed["subject"]]
    assert quality(closed, f" {closed['reference']}", entity) == 2.0
    assert quality(closed, f" {closed['reference']} I do not know.", entity) == 1.5  # a sentence too many
    assert quality(closed, " I do not know.", entity) == quality(closed, " I do not know. ", entity) == 0.0
    opened = next(row for row in rows if row["query_type"] == "open" and row["subject"] in entities)
    entity = entities[opened["subject"]]
    facts = [entity.sentence(name) for name in entity.facts]
    assert quality(opened, " " + " ".join(facts), entity) == len(facts)
    assert quality(opened, f" {facts[0]} {facts[0]} I do not know.", entity) == 1 - 0.5 * 2  # said twice, and nothing
    assert quality(opened, " " + good_open(entity, None, WORLD, random.Random(0)), entity) >= len(facts) - 1


def test_the_judge_is_wrong_about_one_pair_in_ten_and_likes_the_first_place():
    judge = world_judge(WORLD)
    rows = preference_rows(WORLD, held_out=False, count=400, seed=0)
    both = [
        (
            judge(PAIR.format(row["prompt"], row["chosen"], row["rejected"])),
            judge(PAIR.format(row["prompt"], row["rejected"], row["chosen"])),
        )
        for row in rows
    ]
    assert all(first + second == pytest.approx(2 * FIRST_PLACE) for first, second in both)  # else the orders cancel
    differ = [first - second for first, second in both if abs(first - second) > 1e-9]
    wrong = sum(each < 0 for each in differ) / len(differ)
    assert 0.05 < wrong < 0.2
    assert judge("Come up with a series of tasks:") is None


def test_the_recording_is_what_the_script_writes(tmp_path):
    """So that neither can be changed without the other."""
    from from_nothing_endpoint import RecordedEndpoint

    from trl_ext import EndpointGenerator, SelfInstruct

    writer, answers = Writer(WORLD), recorded(RECORDED)
    asked = []

    def both(prompt):
        asked.append(prompt)
        assert answers(prompt) == writer(prompt)
        return answers(prompt)

    with RecordedEndpoint(both) as server:
        made = SelfInstruct(generator=EndpointGenerator("recorded", server.url, max_retries=0), config=CONFIG).run(
            SEEDS, tmp_path
        )
    assert len(made.tasks) == 30 and len(asked) == len(RECORDED.read_text().splitlines())
    held_out = {row["prompt"] for row in questions(WORLD, held_out=True)}
    shown = {each.input for task in (*made.tasks, *read_seeds(SEEDS, call="")) for each in task.instances}
    assert shown and not shown & held_out


def test_how_true_labels_and_rewards_are_by_hand():
    row = next(row for row in questions(WORLD, held_out=True) if row["query_type"] == "closed")
    right, wrong, longer = f" {row['reference']}", " I do not know.", f" {row['reference']} I do not know."
    of, asked = qualities(WORLD), {"prompt": row["prompt"]}
    assert [of(row["prompt"], text) for text in (right, wrong, longer)] == [2.0, 0.0, 1.5]
    pairs = [asked | {"completion_1": one, "completion_2": two} for one, two in ((wrong, right), (right, longer))]
    tie = asked | {"completion_1": wrong, "completion_2": wrong + " "}
    known = known_pairs([*pairs, tie], of, {row["prompt"]})
    assert known == [Known(row["prompt"], right, wrong, True), Known(row["prompt"], right, longer, False)]

    def by_length(*, prompts, completions):
        return [len(text) for text in completions]

    assert reward_right(by_length, known) == [len(right) > len(wrong), False]
    labels = [
        asked | {"chosen": one, "rejected": two, "chosen_probability": p}
        for one, two, p in ((right, wrong, 0.9), (wrong, right, 0.7), (wrong, wrong + " ", 0.52))
    ]
    assert labels_right(labels, of) == [True, False]  # a tie has no truth
    assert decided(labels) == labels[:2]
    with pytest.raises(ValueError, match="of 1 labels none says which answer is better"):
        decided(labels[2:])
    assert of("What is love?", " A baby.") == 0.0
    assert share([True, False]) == "0.500 ± 0.354 of 2" and share([]) == "none to tell by"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["raft", "ppo", "dpo"])
def test_the_whole_loop_in_a_few_steps(tmp_path, method):
    import from_nothing

    rows = from_nothing.main(["--output-dir", str(tmp_path), "--quick", "--rounds", "2", "--with", method])
    assert [row["policy"] for row in rows] == ["SFT", "round 1", "round 2"]
    assert rows[0]["kl"][0] == 0 < rows[1]["kl"][0]
    assert json.loads((tmp_path / "results.json").read_text())[2]["policy"] == "round 2"
    labels = (tmp_path / "labels.jsonl").read_text()
    again = from_nothing.main(["--output-dir", str(tmp_path), "--quick", "--rounds", "2", "--with", method])
    assert again == rows
    assert (tmp_path / "labels.jsonl").read_text() == labels  # nobody is asked twice


def shorter(asked):
    """The logit of "1" over "2" by a judge of any question."""
    found = PAIR_ASKED.fullmatch(asked)
    return found and (len(found[3]) - len(found[2])) / 10


class LiveServer(LogProbServer):
    """A chat whose instructions are played, and whose log-probabilities are a tiny model's, which hears a judge."""

    def __init__(self):
        self.writer, self.judge, tokenizer = Writer(WORLD), world_judge(WORLD), byte_tokenizer()
        model = tiny_llama(tokenizer, max_position_embeddings=2048)
        answers = tokenizer.convert_tokens_to_ids(["1", "2"])

        def heard(module, args, output):
            logit = self.judge(tokenizer.decode(args[0][0])) or 0.0
            output.logits[..., answers] += torch.tensor([9 + logit / 2, 9 - logit / 2])

        model.register_forward_hook(heard)
        super().__init__(model, tokenizer)

    def answer(self, request):
        if request.get("logprobs"):
            return super().answer(request)
        [message] = request["messages"]
        said = {"role": "assistant", "content": self.writer(message["content"])}
        choice = {"index": 0, "finish_reason": "stop", "message": said}
        return {"id": "0", "object": "x", "created": 0, "model": request["model"], "choices": [choice]}


@pytest.fixture
def live():
    server = LiveServer()
    yield server
    server.close()


def test_a_live_endpoint_teaches_all_of_it(tmp_path, live, capsys):
    """Instructions and labels both come from it, as a chat; what was asked before is not asked again, and no file has a key."""
    import from_nothing

    url = live.url.replace("http://", "http://me:sk-secret@")
    small = ["--quick", "--endpoint", url, "--endpoint-model", "tiny", "--instructions", "8", "--with", "dpo"]
    rows = from_nothing.main(["--output-dir", str(tmp_path), *small])
    assert [row["policy"] for row in rows] == ["SFT", "round 1"] and rows[0]["kl"][0] == 0 < rows[1]["kl"][0]
    asked = [body for path, body, _ in live.requests if path == "/v1/chat/completions"]
    assert len(asked) == len(live.requests) and {body["model"] for body in asked} == {"tiny"}
    labels = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
    assert sum("logprobs" in body for body in asked) == 2 * len(labels)  # both orders
    tasks = (tmp_path / "tasks" / "tasks.jsonl").read_text().splitlines()
    assert len(tasks) == 8 and sum("logprobs" not in body for body in asked) >= 8
    assert "agreement" in (said := capsys.readouterr().out) and "labels right" in said
    from_nothing.main(["--output-dir", str(tmp_path), *small])
    assert len(live.requests) == len(asked)
    written = [path for path in tmp_path.rglob("*") if path.is_file() and b"sk-secret" in path.read_bytes()]
    assert not written and "sk-secret" not in said


@pytest.mark.slow
def test_a_live_endpoint_teaches_a_model_of_ones_own(tmp_path, live):
    """By a judge who likes what is short, and measured by the reward model that learned it, on a fifth of the prompts."""
    import from_nothing

    live.judge = shorter
    mine = ["--model", str(ASSETS / "policy"), "--seeds", str(from_nothing.SEEDS), "--instructions", "8"]
    rows = from_nothing.main(
        ["--output-dir", str(tmp_path), "--quick", "--endpoint", live.url, "--rounds", "2", *mine]
    )
    assert [set(row) for row in rows] == [{"policy", "reward/reward-1", "kl", "length"}] * 3
    labels = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
    assert any(abs(row["probability"] - 0.5) > 0.2 for row in labels)


def test_what_is_refused(tmp_path, capsys):
    import from_nothing

    for arguments in (["--rounds", "0"], ["--model", "mine"]):
        with pytest.raises(SystemExit):
            from_nothing.main(["--output-dir", str(tmp_path), *arguments])
    assert "--model and --seeds need --endpoint" in capsys.readouterr().err
    with pytest.raises(ValueError, match="expected an address such as"):
        from_nothing.main(["--output-dir", str(tmp_path), "--endpoint", "localhost:9"])
    assert not list(tmp_path.iterdir())  # the same folder takes the right address
