"""A run's log, the rules that read it, and the page."""

import json
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from checkpoint_case import KINDS, STEPS, make
from test_stopping import Signals
from transformers import TrainerCallback

from trl_ext.cli import main
from trl_ext.reporting.findings import RULES, findings
from trl_ext.reporting.finished_runs import Run, read_run
from trl_ext.reporting.page import page
from trl_ext.trainer_kit.run_log import LOG, lines
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
    "completions without a score": (run_of(rows_unscored=[0.0, 2.0]), run_of(rows_unscored=[0.0, 0.0])),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_each_rule_finds_what_it_is_for(rule):
    shows, does_not = SHOW[rule.name]
    found = {finding.name: finding for finding in findings(shows)}
    assert rule.name in found and re.search(r"\d", found[rule.name].sign) and found[rule.name].turn
    assert rule.name not in {finding.name for finding in findings(does_not)}


def test_few_values_say_nothing():
    curves = {name: [0.0, 0.0] for name in ("explained_variance", "completions/eos_ratio", "reward", "reward_std")}
    assert findings(run_of(**curves)) == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_trainer_leaves_what_a_report_needs(kind, tmp_path):
    make(kind, tmp_path / "out", logging_steps=1, save_strategy="no").train()
    run = read_run(tmp_path / "out")
    assert run.end is not None and run.steps == STEPS and run.begin["versions"]["trl-ext"]
    assert run.begin["config"]["learning_rate"] == 1e-2 and run.begin["plan"]["train"] > 0
    assert all("loss" in log or "stage" in log or "train_runtime" in log for log in run.logs)
    if kind == "reward":
        assert run.samples == []
    else:
        assert {"prompt", "completion", "rewards"} <= run.samples[0].keys()
        assert isinstance(run.samples[0]["rewards"]["even_letters"], float)


def test_a_resumed_run_has_each_step_once(tmp_path):
    stopped = make("ppo", tmp_path, logging_steps=1, parts={"callbacks": [Signals(2, signal.SIGINT)]})
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
    run = run_of(samples=samples, config={"run_name": EVIL}, score=UP, **{f"rewards/{EVIL}/mean": UP})
    html = page([run])
    assert "<script" not in html and html.count("&lt;script&gt;") >= 9


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda folder: None, "there is no such folder"),
        (lambda folder: folder.mkdir(), f"it has no {LOG}"),
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
