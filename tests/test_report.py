"""A run's log, the rules that read it, and the page."""

import json
import os
import re
import shutil
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoint_case import KINDS, STEPS, make
from test_stopping import Signals
from transformers import TrainerCallback, TrainerState

from trl_ext.cli import main
from trl_ext.reporting.charts import charts
from trl_ext.reporting.finished_runs import read_run
from trl_ext.reporting.page import LIMIT, page
from trl_ext.trainer_kit.findings import RULES, findings
from trl_ext.trainer_kit.logged_run import Run
from trl_ext.trainer_kit.run_log import LOG, RunLog, lines
from trl_ext.trainer_kit.stopping import RunStopped

EVIL = "<script>document.title = 'taken'</script>"


def run_of(trainer: str = "PPOTrainer", config: dict | None = None, samples=(), **curves: list[float]) -> Run:
    """A run by what it logged; names have `__` for a slash."""
    curves = {name.replace("__", "/"): values for name, values in curves.items()}
    length = max(map(len, curves.values()), default=1)
    logs = [
        {"kind": "log", "time": float(i), "step": i}
        | {name: values[i] for name, values in curves.items() if i < len(values)}
        for i in range(length)
    ]
    begin = {
        "kind": "begin",
        "time": 0.0,
        "step": 0,
        "trainer": trainer,
        "config": config or {},
        "versions": {},
        "plan": {},
    }
    return Run("run", begin, logs, list(samples), {"kind": "end", "time": 9.0, "step": length})


UP, FLAT = [float(i) for i in range(12)], [1.0] * 12


def watched(error: float = 0.5, **curves: list[float]) -> Run:
    """A run that RewardDiagnostics watched beside a reward that training does not see."""
    curves = {"proxy": UP} | curves
    errors = {f"{name}_error": [error] * 12 for name in ("proxy", "gold")}
    return run_of(**{f"diagnostics/{name}": values for name, values in (curves | errors).items()})


SHOW = {  # by rule: a run that shows it, and one that does not though it is near
    "hacking by length": (
        run_of(score=UP, completions__mean_length=[10 + x for x in UP]),
        run_of(score=UP, completions__mean_length=[10.0, 11.0] * 6),
    ),
    "collapse": (run_of(perplexity=[9 - 0.7 * x for x in UP]), run_of(perplexity=[9 - 0.2 * x for x in UP])),
    "a critic that explains nothing": (
        run_of(explained_variance=[0.01] * 12),
        run_of(explained_variance=[-0.5] * 6 + [0.4] * 6),
    ),
    "KL that runs away": (
        run_of(kl_per_completion=[x**2 for x in UP]),
        run_of(kl_per_completion=[x / 4 for x in UP]),
    ),
    "all scores alike": (run_of(reward=FLAT, reward_std=[0.0] * 12), run_of(reward=FLAT, reward_std=[0.1] * 12)),
    "no end": (run_of(completions__eos_ratio=[0.0] * 12), run_of(completions__eos_ratio=[0.0] * 6 + [0.5] * 6)),
    "a reward model at chance": (
        run_of("ImitationRewardTrainer", accuracy=[0.5] * 12),
        run_of("ImitationRewardTrainer", accuracy=[0.5] * 6 + [0.8] * 6),
    ),
    "clip fraction out of range": (
        run_of(**{"clip_ratio/region_mean": [0.5] * 12}),
        run_of(**{"clip_ratio/region_mean": [0.5] * 3 + [0.1] * 9}),
    ),
    "a learning rate too small to move": (run_of(policy_kl=[0.0] * 12), run_of(policy_kl=[0.0, 1e-3] * 6)),
    "a reward that is got around": (
        run_of(score=UP, eval_score=[5 - x / 2 for x in UP]),
        run_of(score=UP, eval_score=[x / 2 for x in UP]),
    ),
    "a score that is length": (
        run_of(diagnostics__length_share=[0.3] * 6 + [0.95] * 6),
        run_of(diagnostics__length_share=[0.95] * 8 + [0.6] * 4),
    ),
    "gold that falls while proxy rises": (
        watched(gold=[5 + 2 * x for x in UP[:8]] + [14 - x for x in UP[:4]]),  # it ends above where it began
        watched(gold=[5 + 2 * x for x in UP]),
    ),
    "completions without a score": (run_of(rows_unscored=[0.0, 2.0]), run_of(rows_unscored=[0.0, 0.0])),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_each_rule_finds_what_it_is_for(rule):
    shows, does_not = SHOW[rule.name]
    found = {finding.name: finding for finding in findings(shows)}
    assert rule.name in found and re.search(r"\d", found[rule.name].sign) and found[rule.name].turn
    assert rule.name not in {finding.name for finding in findings(does_not)}


def test_equal_rewards_are_no_fault_of_rate_or_critic():
    curves = {"reward": FLAT, "reward_std": [0.0] * 12, "policy_kl": [0.0] * 12, "explained_variance": [0.0] * 12}
    assert [finding.name for finding in findings(run_of(**curves))] == ["all scores alike"]


def grows(**curves: float) -> Run:
    """A run of two Grows of 8 completions to each of 4 prompts: too few for a curve, and each of many samples."""
    return run_of(
        "RAFTTrainer",
        {"num_generations": 8},
        grow__prompts=[4] * 2,
        **{name: [value] * 2 for name, value in curves.items()},
    )


@pytest.mark.parametrize(
    ("name", "shows", "does_not"),
    [
        (
            "all scores alike",
            {"grow__score": 1.0, "grow__score_max": 1.0},
            {"grow__score": 1.0, "grow__score_max": 1.1},
        ),
        ("no end", {"grow__truncated": 31}, {"grow__truncated": 16}),
    ],
)
def test_a_single_grow_tells(name, shows, does_not):
    assert [(finding.name, bool(re.search(r"\d", finding.sign))) for finding in findings(grows(**shows))] == [
        (name, True)
    ]
    assert findings(grows(**does_not)) == []


def test_a_run_that_learns_has_critic_enough():
    """As where the score comes to be near its highest, so that little is left to explain."""
    learns, stays = ([0.5] * 4 + [end] * 8 for end in (0.9, 0.6))
    for scores, names in ((learns, []), (stays, ["a critic that explains nothing"])):
        run = run_of(score=scores, reward_std=[0.5] * 12, explained_variance=[-0.3] * 12)
        assert [finding.name for finding in findings(run)] == names


def test_gold_that_parts_within_its_errors_is_no_finding():
    falls = [5.0 + x for x in UP[:8]] + [11 - x for x in UP[:4]]
    assert [finding.name for finding in findings(watched(gold=falls))] == ["gold that falls while proxy rises"]
    assert "until about step 7" in findings(watched(gold=falls))[0].sign
    assert findings(watched(gold=falls, error=3.0)) == [] == findings(watched(gold=falls, proxy=FLAT))


def test_length_in_a_single_grow_tells():
    (found,) = findings(grows(diagnostics__length_share=0.93, grow__score=1.0, grow__score_max=2.0))
    assert found.name == "a score that is length" and "93%" in found.sign
    assert findings(run_of(diagnostics__length_share=[0.93] * 4)) == []  # of batches so few say nothing


def test_what_diagnostics_logged_is_drawn():
    one = run_of(score=UP, **{f"diagnostics/{name}": UP for name in ("length_share", "copied", "repetition")})
    titles = [title for title, _ in charts([one])]
    assert (
        "share of the ranking within prompts that is length" in titles and "copied from the prompt, repeated" in titles
    )
    assert not any("gold" in title for title in titles)
    drawn = dict(charts([watched(gold=UP)]))
    assert {"proxy: the reward that pays", "gold: a reward that training does not see", "gold against proxy"} <= set(
        drawn
    )


def test_collapse_of_short_completions_is_found_as_by_ppo():
    curves = {"own_length": [24.0] * 12, "perplexity": [3.4] + [2.4] * 11, "kl_per_completion": [0.0] + [26.0] * 11}
    found = [finding for finding in findings(run_of(config={"max_completion_length": 24}, **curves))]
    assert "24 of 24 tokens" in next(finding.sign for finding in found if finding.name == "collapse")
    near = curves | {"kl_per_completion": [0.0] + [23.0] * 11}
    for config, given in (
        ({"max_completion_length": 24}, near),
        ({"max_completion_length": 48}, curves),
        ({}, curves),
    ):
        assert "collapse" not in {finding.name for finding in findings(run_of(config=config, **given))}


def test_few_values_say_nothing():
    curves = {name: [0.0, 0.0] for name in ("explained_variance", "completions/eos_ratio", "reward", "reward_std")}
    assert findings(run_of(**curves)) == []


def looks(*, paid_for_length: bool) -> list[dict]:
    """Two looks at completions of 1 to 9 words, whose score is their length or has nothing to do with it."""
    scores = list(range(1, 10)) if paid_for_length else [5, 1, 9, 2, 7, 3, 8, 1, 5]
    return [
        {"step": step, "prompt": "", "completion": "word " * (n + 1), "rewards": {}, "score": float(score)}
        for step in (0, 9)
        for n, score in enumerate(scores)
    ]


@pytest.mark.parametrize("paid", [True, False])
def test_what_becomes_longer_and_better_is_not_paid_for_length(paid):
    run = run_of(samples=looks(paid_for_length=paid), score=UP, completions__mean_length=[10 + x for x in UP])
    found = [finding.sign for finding in findings(run) if finding.name == "hacking by length"]
    assert bool(found) is paid and all("1.00 among completions of one step" in sign for sign in found)


@pytest.mark.parametrize("kind", KINDS)
def test_every_trainer_leaves_what_a_report_needs(kind, tmp_path):
    make(kind, tmp_path / "out", logging_steps=1, save_strategy="no").train()
    run = read_run(tmp_path / "out")
    assert run.end is not None and run.steps == STEPS and run.begin["versions"]["trl-ext"]
    assert run.begin["config"]["learning_rate"] == 1e-2 and run.begin["plan"]["train"] > 0
    assert all("loss" in log or "stage" in log or "train_runtime" in log for log in run.logs)
    assert {"prompt", "completion", "rewards"} <= run.samples[0].keys()
    if kind == "reward":
        chosen, rejected = run.samples[:2]
        assert chosen["prompt"] == rejected["prompt"] and chosen["prompt"].startswith("item ")
        assert "good" in chosen["completion"] and "bad" in rejected["completion"]
        assert chosen["rewards"] == {"chosen": chosen["score"]} and rejected["rewards"] == {
            "rejected": rejected["score"]
        }
    else:
        assert isinstance(run.samples[0]["rewards"]["even_letters"], float)
        assert run.samples[0]["score"] == run.samples[0]["rewards"]["even_letters"]


class Fails(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise ArithmeticError("it is gone")


@pytest.mark.parametrize("imitation_coef", [0.0, 0.1])
def test_scores_of_pairs_are_the_models_own(imitation_coef, tmp_path):
    trainer = make("reward", tmp_path, logging_steps=1, max_steps=1, learning_rate=0.0, imitation_coef=imitation_coef)
    trainer.train()
    ids, scores = trainer._last[0], trainer._last[2].flatten().tolist()
    model = trainer.model.eval()
    expected = model(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"]).logits.flatten().tolist()
    assert scores == pytest.approx(expected, abs=1e-4)
    half = len(scores) // 2
    of_pairs = [score for i in range(half) for score in (scores[i], scores[half + i])]
    assert [one["score"] for one in read_run(tmp_path).samples] == of_pairs


@pytest.mark.parametrize("kind", ["ppo", "reward"])
def test_a_run_that_is_stopped_leaves_samples_of_its_end(kind, tmp_path):
    callbacks = {"callbacks": [Signals(3, signal.SIGTERM)]}
    with pytest.raises(RunStopped):
        make(kind, tmp_path, logging_steps=1, max_steps=60, parts=callbacks).train()
    steps = [sample["step"] for sample in read_run(tmp_path).samples]
    assert set(steps) == {1, 3}
    assert "step 3: best" in page([read_run(tmp_path)])


def test_a_run_that_is_stopped_in_a_grow_has_ended(tmp_path):
    def reward(completions, **columns):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return [float(len(text)) for text in completions]

    calls: list[int] = []
    with pytest.raises(RunStopped):
        make("raft", tmp_path, logging_steps=1, parts={"reward_funcs": reward}, prompts_per_part=16).train()
    assert f"stopped after step 2 of {STEPS}," in page([read_run(tmp_path)])


def test_a_run_that_failed_before_its_first_log_is_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    trainer = make("reward", tmp_path / "run", logging_steps=10, parts={"callbacks": [Fails(3)]})
    with pytest.raises(ArithmeticError):
        trainer.train()
    main(["report", "run"])
    html = Path("run/_report.html").read_text()
    assert "failed, nothing was logged, " in html and "ArithmeticError: it is gone" in html
    assert "learning_rate" in html and "planned" in html and "step 3: best" in html
    assert "None of the known faults shows" not in html
    again = make("reward", tmp_path / "run", logging_steps=1)
    again.train(resume_from_checkpoint=True)
    assert read_run(tmp_path / "run").failure is None and read_run(tmp_path / "run").end is not None


def test_time_is_of_all_sessions(tmp_path):
    begin, end, log = run_of().begin, {"kind": "end"}, {"kind": "log", "loss": 1.0}
    first = [begin | {"time": 100.0}, log | {"time": 110.0, "step": 1}, end | {"time": 130.0, "step": 2}]
    killed = [begin | {"time": 1000.0, "step": 2}, log | {"time": 1007.0, "step": 3}]
    last = [begin | {"time": 5000.0, "step": 3}, log | {"time": 5001.0, "step": 4}, end | {"time": 5002.0, "step": 4}]
    leave(tmp_path, *first, *killed, *last)
    assert read_run(tmp_path).seconds == 30.0 + 7.0 + 2.0
    leave(tmp_path, *first, *killed)
    assert read_run(tmp_path).seconds == 30.0 + 7.0 and read_run(tmp_path).end is None


def test_a_resumed_run_has_each_step_once(tmp_path):
    stopped = make("ppo", tmp_path, logging_steps=1, parts={"callbacks": [Signals(2, signal.SIGTERM)]})
    with pytest.raises(RunStopped):
        stopped.train()
    with (tmp_path / LOG).open("a") as file:
        file.write('{"kind": "log", "time": 1, "step": 3, "loss": 77.0}\n{"kind": "log", "ti')  # then it was killed
    make("ppo", tmp_path, logging_steps=1).train(resume_from_checkpoint=True)
    found = list(lines(tmp_path / LOG))
    losses = [line["step"] for line in found if line["kind"] == "log" and "loss" in line]
    assert losses == [1, 2, 3, 4] and 77.0 not in [line.get("loss") for line in found]
    assert [line["step"] for line in found if line["kind"] == "begin"] == [0, 2]


def test_the_page_of_two_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make("ppo", tmp_path / "one", logging_steps=1, save_strategy="no").train()
    make("raft", tmp_path / "two", logging_steps=1, save_strategy="no").train()
    capsys.readouterr()
    main(["report", "one", "two"])
    told = capsys.readouterr().out
    assert "one/_report.html: open it in a browser" in told
    html = Path("one/_report.html").read_text()
    assert len(html) < 2_000_000 and "one beside two" in html and html.count("<svg") >= 4
    assert not re.search(r"(src|href)=[\"']?http", html)


def test_text_of_strangers_is_text():
    samples = [
        {"time": 1.0, "step": 0, "prompt": EVIL, "completion": f"{EVIL} $x$", "rewards": {EVIL: 1.0}} for _ in range(9)
    ]
    run = run_of(EVIL, samples=samples, config={"run_name": EVIL}, score=UP, **{f"rewards/{EVIL}/mean": UP})
    run = replace(run, name=EVIL, begin=run.begin | {"versions": {EVIL: EVIL}})
    html = page([run, replace(run, name="other")], [EVIL])
    assert "<script" not in html and html.count("&lt;script&gt;") >= 9


def test_the_page_stays_small_and_says_what_is_cut(monkeypatch):
    samples = [
        {
            "time": 1.0,
            "step": step,
            "prompt": "\u4f60'" * 4000,
            "completion": "\u4f60'" * 4000,
            "rewards": {"r": float(n)},
        }
        for step in (0, 9)
        for n in range(32)
    ]
    run = run_of(samples=samples, score=UP, config={f"option_{n}": "x" * 9000 for n in range(99)})
    html = page([replace(run, name=f"run {n}") for n in range(24)])
    assert len(html.encode()) < LIMIT and "\u4f60&#39; … (cut)" in html and "x … (cut)" in html
    monkeypatch.setattr("trl_ext.reporting.page.CHARTS", 100_000)  # with as many as fill the page it takes ten seconds
    several = run_of(score=UP, **{f"rewards/{n}/mean": UP for n in range(12)})
    assert re.search(r"\d+ further charts are left out", page([several]))


def test_runs_of_one_name_are_told_apart(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a/ppo", "b/ppo", "b/raft"):
        run = run_of(explained_variance=[0.0] * 12)
        leave(tmp_path / name, run.begin, *run.logs, run.end)
    main(["report", "a/ppo", "b/ppo", "b/raft"])
    told = capsys.readouterr().out
    assert [line.partition(":")[0] for line in told.splitlines()[:3]] == ["a/ppo", "b/ppo", "raft"]
    assert "<h1>a/ppo beside b/ppo beside raft</h1>" in Path("a/ppo/_report.html").read_text()


def test_each_run_has_one_colour_in_all_charts():
    one = replace(run_of(score=UP, kl_per_completion=UP), name="one")
    other = replace(run_of(score=UP, loss=UP, kl_per_completion=UP), name="other")
    drawn = dict(charts([one, other]))
    assert "#ff7f0e" in drawn["losses"] and "#1f77b4" not in drawn["losses"]  # matplotlib's second colour


def test_half_a_character_stops_neither_run_nor_page(tmp_path, monkeypatch, capsys):
    """As JSON has it that was cut between the two halves of an emoji."""
    monkeypatch.chdir(tmp_path)
    half, folder = "\ud83d", tmp_path / "run"
    folder.mkdir()
    sample = {"prompt": f"why {half}", "completion": half + "\ude00", "rewards": {half: 1.0}}
    log = RunLog(folder, lambda: {"trainer": half, "config": {half: half}}, lambda: [sample], dict)
    state = TrainerState(max_steps=9)
    for event in (log.on_train_begin, log.on_log, log.on_train_end):
        event(None, state, None, **({"logs": {f"rewards/{half}/mean": 1.0}} if event == log.on_log else {}))
    assert [(one["prompt"], one["completion"]) for one in read_run(folder).samples] == [("why \ufffd", "\U0001f600")]
    with (folder / LOG).open("a") as file:
        file.write(json.dumps({"kind": "sample", "time": 1.0, "step": 0} | sample) + "\n")  # of an older version
    main(["report", "run"])
    assert "why \ufffd" in (folder / "_report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda folder: None, "there is no such folder"),
        (lambda folder: folder.mkdir(), f"it has no {LOG}"),
        (lambda folder: folder.write_text("x"), "report of 'run': it is a file. Give the folder of a run"),
        (lambda folder: (folder.mkdir(), (folder / LOG).write_bytes(b"\xff\x00")), "cannot be read"),
        (lambda folder: (folder.mkdir(), (folder / LOG).write_text('{"kind": "begin", "time": 1.0, "step": 0}\n')), "nothing was logged yet"),
    ],
)  # fmt: skip
def test_what_is_no_run(make_it, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_it(tmp_path / "run")
    with pytest.raises(SystemExit) as raised:
        main(["report", "run"])
    told = capsys.readouterr().err
    assert raised.value.code == 2 and message in told and "Traceback" not in told


def test_a_run_that_is_still_going(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    going = run_of(score=UP)
    with (tmp_path / "run" / LOG).open("w") as file:
        for line in [going.begin, *going.logs]:
            file.write(json.dumps(line) + "\n")
        file.write('{"kind": "lo')
    main(["report", "run", "--output", "page.html"])
    assert "has not ended: still going, or killed; logged up to step 11" in Path("page.html").read_text()


def leave(folder: Path, *found: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LOG).write_text("".join(json.dumps(line) + "\n" for line in found))


@pytest.mark.parametrize(
    ("begun", "ended", "told"),
    [
        ({"of": 3000}, {"step": 66, "of": 3000}, "stopped after step 66 of 3000,"),
        ({"of": 66}, {"step": 66, "of": 66}, "ended after step 66,"),
        ({}, {"step": 66}, "ended after step 66,"),  # an older log
        ({"of": "many"}, {"step": 66, "of": None}, "ended after step 66,"),
        ({"of": 3000}, None, "logged up to step 11 of 3000,"),
    ],
)
def test_how_far_it_came(begun, ended, told, tmp_path):
    run = run_of(score=UP)
    leave(tmp_path, run.begin | begun, *run.logs, *([] if ended is None else [run.end | ended]))
    assert told in page([read_run(tmp_path)])


def test_a_stopped_run_says_of_how_many_steps(tmp_path):
    with pytest.raises(RunStopped):
        make("ppo", tmp_path, logging_steps=1, parts={"callbacks": [Signals(2, signal.SIGTERM)]}).train()
    assert f"stopped after step 2 of {STEPS}," in page([read_run(tmp_path)])


@pytest.mark.parametrize("ended", [True, False])
def test_too_few_values_are_no_praise(ended, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, values in (("few", UP[:4]), ("enough", UP[:5])):
        run = run_of(score=values)
        leave(tmp_path / name, run.begin, *run.logs, *([run.end] if ended else []))
        main(["report", name])
    told = capsys.readouterr().out
    assert "few: too few values were logged" in told and "at most 4" in told and "enough: too few" not in told
    assert ("look again later" in told) is not ended
    pages = [Path(name, "_report.html").read_text() for name in ("few", "enough")]
    assert ["None of the known faults shows" in html for html in pages] == [False, True]
    assert ["too few values were logged" in html for html in pages] == [True, False]


def test_a_folder_that_is_given_twice_is_shown_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        run = run_of(explained_variance=[0.0] * 12)
        leave(tmp_path / name, run.begin, *run.logs, run.end)
    main(["report", "one", "two", "one/", str(tmp_path / "one")])
    assert capsys.readouterr().out.count("a critic that explains nothing") == 2
    assert "<h1>one beside two</h1>" in Path("one/_report.html").read_text()


BEGIN, LOGGED = run_of().begin, run_of(score=UP).logs
LACK = {name: {key: value for key, value in BEGIN.items() if key != name} for name in BEGIN}


@pytest.mark.parametrize(
    "begin", [LACK["kind"], LACK["time"], LACK["step"], BEGIN | {"step": "0"}, BEGIN | {"time": None}]
)
def test_a_log_without_a_whole_beginning_is_refused(begin, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    leave(tmp_path / "run", begin, *LOGGED)
    with pytest.raises(SystemExit) as raised:
        main(["report", "run"])
    told = capsys.readouterr().err
    assert raised.value.code == 2 and f"report of 'run': its {LOG} cannot be read" in told and "Traceback" not in told


@pytest.mark.parametrize(
    "damaged",
    [
        *(LACK[name] for name in ("trainer", "config", "versions", "plan")),
        *(BEGIN | {name: value} for name in ("config", "versions", "plan") for value in (None, [1], "x")),
        BEGIN | {"plan": {"train": "much"}},
        BEGIN | {"config": {"num_iterations": "four", "value_coef": None}},
        {"kind": "log", "time": 1.0, "step": None, "score": 1.0},
        {"kind": "log", "time": 1.0, "step": 3, "score": 10**400},
        {"kind": "log", "step": 3, "score": 1.0},
        {"kind": "sample", "time": 1.0, "step": 3},
        {"kind": "sample", "time": 1.0, "step": 3, "prompt": "\ud800", "completion": 1, "rewards": {"r": "x"}, "score": "x"},
        {"kind": "end", "time": 9.0, "step": None},
        {"kind": "end", "time": 9.0, "step": 9, "peaks": [1]},
        {"kind": ["end"], "time": 9.0, "step": 9},
    ],
)  # fmt: skip
def test_damaged_lines_are_passed_over(damaged, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    moved = run_of(policy_kl=[0.0] * 12).logs
    leave(tmp_path / "run", BEGIN | {"plan": {"train": 2**30}}, *LOGGED, *moved, damaged)
    main(["report", "run"])
    if damaged.get("kind") == "begin":
        leave(tmp_path / "run", damaged, *LOGGED, *moved)
        main(["report", "run"])
    assert "open it in a browser" in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a Chromium")
def test_a_browser_reads_it(tmp_path):
    samples = [{"time": 1.0, "step": 0, "prompt": "why?", "completion": EVIL, "rewards": {"r": 1.0}}]
    shows, _ = SHOW["KL that runs away"]
    (tmp_path / "page.html").write_text(page([Run("run", shows.begin, shows.logs, samples, shows.end)]))
    browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", f"file://{tmp_path}/page.html"]
    dom = subprocess.run(browser, capture_output=True, text=True, timeout=120).stdout
    assert "KL that runs away" in dom and "<title>run</title>" in dom and "<svg" in dom


def test_a_log_that_cannot_be_written_stops_no_run(tmp_path):
    class Removes(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 1:
                (tmp_path / LOG).unlink()
                (tmp_path / LOG).mkdir()

    trainer = make("ppo", tmp_path, logging_steps=1, save_strategy="no", parts={"callbacks": [Removes()]})
    with pytest.warns(UserWarning, match="cannot be written"):
        trainer.train()
    assert trainer.state.global_step == STEPS
