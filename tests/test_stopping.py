"""Ctrl-C and SIGTERM while a trainer trains."""

import os
import signal
import threading
from pathlib import Path

import pytest
from checkpoint_case import KINDS, STEPS, assert_same, even_letters, make, trained
from self_training_case import trainer as raft_trainer
from tiny import byte_tokenizer, tiny_llama
from transformers import TrainerCallback

from trl_ext import RAFTTrainer, ReSTTrainer
from trl_ext.trainer_kit.commands import ends_in_one_line
from trl_ext.trainer_kit.run_log import LOG
from trl_ext.trainer_kit.stopping import SIGNALS, RunStopped, signals_held


@pytest.fixture(autouse=True)
def pythons_own_handlers():
    """As in a shell; a shell that starts a job in the background lets it ignore Ctrl-C, and then so does a run."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in zip(SIGNALS, (signal.default_int_handler, signal.SIG_DFL), strict=True):
        signal.signal(number, handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Signals(TrainerCallback):
    """Sends this process signals as a step begins."""

    def __init__(self, step: int, *numbers: int):
        self.step, self.numbers = step, numbers

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            for number in self.numbers:
                os.kill(os.getpid(), number)


@pytest.mark.parametrize(("kind", "number"), [*zip(KINDS, 2 * SIGNALS, strict=False)])
def test_it_ends_after_the_step_and_goes_on_to_the_same_weights(kind, number, tmp_path, capfd):
    whole = make(kind, tmp_path / "whole")
    whole.train()
    stopped = make(kind, tmp_path / "stopped", parts={"callbacks": [Signals(2, number)]})
    handlers = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(RunStopped, match=rf"after step 2 of {STEPS}, with checkpoint-2 \(train\(resume_from"):
        stopped.train()
    assert [signal.getsignal(each) for each in SIGNALS] == handlers
    assert "Stopping after this step, with a checkpoint." in capfd.readouterr().err
    assert stopped.state.global_step == 2
    again = make(kind, tmp_path / "stopped")
    again.train(resume_from_checkpoint=True)
    assert_same(trained(whole), trained(again))


def test_a_second_signal_stops_at_once(tmp_path):
    trainer = make("ppo", tmp_path, parts={"callbacks": [Signals(2, signal.SIGINT, signal.SIGTERM)]})
    with pytest.raises(KeyboardInterrupt) as raised:
        trainer.train()
    assert not isinstance(raised.value, RunStopped) and trainer.state.global_step == 1


def test_its_last_step_is_saved_too(tmp_path):
    """It was asked to stop, so that what follows in a program is not done; nothing of it is lost."""
    trainer = make("ppo", tmp_path, save_strategy="no", parts={"callbacks": [Signals(STEPS, signal.SIGINT)]})
    with pytest.raises(RunStopped, match=f"after step {STEPS} of {STEPS}, with checkpoint-{STEPS}"):
        trainer.train()
    assert (tmp_path / f"checkpoint-{STEPS}").is_dir()


def test_a_run_in_the_background_ignores_ctrl_c(tmp_path):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    trainer = make("ppo", tmp_path, parts={"callbacks": [Signals(2, signal.SIGINT)]})
    trainer.train()
    assert trainer.state.global_step == STEPS


def test_handlers_of_others_stay(tmp_path):
    taken = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: taken.append(number))
    try:
        trainer = make("ppo", tmp_path, parts={"callbacks": [Signals(2, signal.SIGTERM)]})
        trainer.train()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert taken == [signal.SIGTERM] and trainer.state.global_step == STEPS


def test_a_grow_stops_between_its_parts(tmp_path):
    calls = []

    def reward(completions, **columns):
        calls.append(len(completions))
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return [float(len(text)) for text in completions]

    trainer = raft_trainer(tmp_path, reward_funcs=reward)
    with pytest.raises(RunStopped, match="what was sampled is kept"):
        trainer.train()
    assert len(calls) == 1 and list(Path(tmp_path).glob("grow-000/*.parquet"))
    raft_trainer(tmp_path, reward_funcs=reward).train(resume_from_checkpoint=True)


class Stops:
    """A reward that sends a signal at one of its calls."""

    __name__ = "even_letters"

    def __init__(self, at: int, number: int):
        self.at, self.number, self.calls = at, number, 0

    def __call__(self, completions, **columns):
        self.calls += 1
        if self.calls == self.at:
            os.kill(os.getpid(), self.number)
        return even_letters(completions, **columns)


def interrupted(make_it, folder: Path, number: int, *, at: int):
    """A run that is stopped while it scores, and a second one that goes on with it."""
    stopped = make_it(folder, Stops(at, number))
    with pytest.raises(RunStopped) as raised:
        stopped.train()
    again = make_it(folder, Stops(0, number))
    again.train(resume_from_checkpoint=True)
    return stopped, again, str(raised.value)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("cls", [RAFTTrainer, ReSTTrainer])
def test_steps_before_a_grow_that_is_stopped_are_kept(cls, number, tmp_path, capfd):
    def make_it(folder, reward):
        model = tiny_llama(byte_tokenizer(), attention_dropout=0.2)  # so that random states matter
        return raft_trainer(folder, cls, model=model, reward_funcs=reward, improve_steps=2, num_stages=3)

    whole = make_it(tmp_path / "whole", Stops(0, number))
    whole.train()
    per_stage = whole.state.max_steps // 3
    stopped, again, told = interrupted(make_it, tmp_path / "stopped", number, at=4)  # a Grow has 3 parts
    assert stopped.state.global_step == per_stage
    assert f"after step {per_stage} of {3 * per_stage}, with checkpoint-{per_stage} (train(resume_from" in told
    assert "Stopping after this part of the samples, with a checkpoint" in capfd.readouterr().err
    assert (tmp_path / "stopped" / f"checkpoint-{per_stage}").is_dir()
    assert_same(trained(whole), trained(again))
    assert whole.table.improves == again.table.improves and whole.table.cost == again.table.cost


def test_a_grow_that_is_stopped_twice_writes_its_checkpoint_once(tmp_path):
    def make_it(folder, reward):
        return raft_trainer(folder, reward_funcs=reward, improve_steps=2, num_stages=2)

    with pytest.raises(RunStopped):
        make_it(tmp_path, Stops(4, signal.SIGINT)).train()
    state = tmp_path / "checkpoint-2" / "trainer_state.json"
    before = state.stat().st_mtime_ns
    with pytest.raises(RunStopped, match="with checkpoint-2"):
        make_it(tmp_path, Stops(1, signal.SIGINT)).train(resume_from_checkpoint=True)
    assert state.stat().st_mtime_ns == before


@pytest.mark.parametrize("number", SIGNALS)
def test_a_rollout_of_ppo_that_is_stopped_ends_with_its_step(number, tmp_path, capfd):
    def make_it(folder, reward):
        return make("ppo", folder, save_strategy="no", parts={"reward_funcs": reward})

    whole = make_it(tmp_path / "whole", Stops(0, number))
    whole.train()
    stopped, again, told = interrupted(make_it, tmp_path / "stopped", number, at=2)
    assert f"after step {stopped.state.global_step} of {STEPS}, with checkpoint-{stopped.state.global_step}" in told
    assert 0 < stopped.state.global_step < STEPS
    assert "Stopping after this step, with a checkpoint." in capfd.readouterr().err
    assert_same(trained(whole), trained(again))


class SignalsLate(TrainerCallback):
    """Behind the last step."""

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == state.max_steps:
            os.kill(os.getpid(), signal.SIGINT)

    def on_train_end(self, args, state, control, **kwargs):
        if args.save_strategy == "no":
            os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_while_the_last_checkpoint_is_written_is_heard(tmp_path):
    with pytest.raises(RunStopped, match=f"after step {STEPS} of {STEPS}, with checkpoint-{STEPS}"):
        make("reward", tmp_path, parts={"callbacks": [SignalsLate()]}).train()
    again = make("reward", tmp_path)
    with pytest.warns(UserWarning, match="finished already"):
        again.train(resume_from_checkpoint=True)


def test_a_signal_at_the_end_of_a_run_without_checkpoints_loses_nothing(tmp_path):
    trainer = make("reward", tmp_path, save_strategy="no", parts={"callbacks": [SignalsLate()]})
    trainer.train()
    assert trainer.state.global_step == STEPS


def test_another_thread_takes_no_signals(tmp_path):
    trainer = make("ppo", tmp_path)
    thread = threading.Thread(target=trainer.train)
    thread.start()
    thread.join(120)
    assert trainer.state.global_step == STEPS


def test_without_optimizers_it_cannot_go_on(tmp_path):
    trainer = make("ppo", tmp_path, parts={"callbacks": [Signals(2, signal.SIGINT)]}, save_only_model=True)
    with pytest.raises(RunStopped, match="save_only_model=True keeps what going on would need out of it"):
        trainer.train()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_command_is_stopped_wherever_it_is(number, capsys):
    handlers = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(SystemExit) as raised, ends_in_one_line("cmd", when_stopped="Give it again."):
        os.kill(os.getpid(), number)
        pytest.fail("it went on")
    assert raised.value.code == 130 and capsys.readouterr().err == "cmd: stopped. Give it again.\n"
    assert [signal.getsignal(each) for each in SIGNALS] == handlers


def test_what_is_written_is_whole_before_a_signal_is_heard():
    written = []
    with pytest.raises(KeyboardInterrupt), signals_held():
        os.kill(os.getpid(), signal.SIGINT)
        written.append("whole")
    assert written == ["whole"]
    with pytest.raises(KeyboardInterrupt), signals_held():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        written.append("after a second one")
    assert written == ["whole"]


def test_a_finished_run_makes_no_further_step(tmp_path):
    """transformers makes one before it looks whether the end is reached."""
    one = make("ppo", tmp_path)
    one.train()
    again = make("ppo", tmp_path)
    with pytest.warns(UserWarning, match=rf"finished already, after step {STEPS} of {STEPS}: nothing was trained"):
        again.train(resume_from_checkpoint=True)
    assert again.was_finished and not one.was_finished and again.state.global_step == STEPS
    assert_same(trained(one), trained(again))


@pytest.mark.parametrize("kind", ["ppo", "raft", "reward"])
def test_a_finished_run_that_is_given_again_leaves_its_log_as_it_is(kind, tmp_path):
    make(kind, tmp_path).train()
    log = (tmp_path / LOG).read_bytes()
    again = make(kind, tmp_path)
    with pytest.warns(UserWarning, match="finished already"):
        again.train(resume_from_checkpoint=True)
    assert again.was_finished and (tmp_path / LOG).read_bytes() == log


def test_a_command_says_where_it_stopped(capsys):
    with pytest.raises(SystemExit) as raised, ends_in_one_line("cmd", when_stopped="Give it again."):
        raise RunStopped("after step 2 of 4")
    assert raised.value.code == 130
    assert capsys.readouterr().err == "cmd: stopped after step 2 of 4. Give it again.\n"
