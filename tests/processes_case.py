"""Each trainer in two processes: `processes_case.py WHAT KIND FOLDER`, where WHAT is a function below.

What a process finds is a line of its own on its output, behind its number.
"""

import faulthandler
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import torch
from checkpoint_case import KINDS, PROMPTS, STEPS, assert_same, even_letters, make, pairs, trained
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tiny import byte_tokenizer, tiny_llama, tiny_reward_model
from transformers import TrainerCallback
from two_processes import leave

from trl_ext.self_training.grow import Grower
from trl_ext.trainer_kit import machines, output_dirs
from trl_ext.trainer_kit.machines import bits

PATIENCE = 200  # seconds, after which each process shows where it is
EVALUATED, KILLED_AT = 2, 3  # steps
TABLE = ("ppo", "ppo, value model", "reward", "raft", "rest")
RANK = int(os.environ.get("RANK", 0))


def trainer_of(case: str, folder: Path, *, callbacks=(), evaluates: bool = True, **changes):
    """A trainer of the table, which evaluates in the midst of its run, on as many rows as do not come out even."""
    kind, _, critic = case.partition(", ")
    held_out = pairs().select(range(5)) if kind == "reward" else Dataset.from_dict({"prompt": PROMPTS[:5]})
    parts = {"eval_dataset": held_out, "callbacks": list(callbacks)}
    if critic:
        parts["value_model"] = tiny_reward_model(byte_tokenizer())
    evaluated = {"eval_strategy": "steps", "eval_steps": EVALUATED, "per_device_eval_batch_size": 2}
    common = (
        (evaluated if evaluates else {})
        | {"logging_steps": 1}
        | ({"ddp_backend": "gloo"} if "RANK" in os.environ else {})
    )
    common |= {"num_generations_eval": 1} if kind == "ppo" else {}
    return make(kind, folder, parts=parts, **common | changes)


def say(line: str) -> None:
    print(f"\n{RANK}: {line}\n", end="", flush=True)


def refused(what: str, attempt) -> None:
    try:
        attempt()
    except (ValueError, RuntimeError) as error:
        say(f"{what} refused: {type(error).__name__}: {error}")


class Killed(TrainerCallback):
    """The second process is gone at once, as by the system for lack of memory."""

    def on_step_begin(self, args, state, control, **kwargs):
        if RANK and state.global_step == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)


def begins(case: str, folder: Path) -> None:
    """A whole run, whose first process is late in saving; what is refused, and what is accepted; then one is killed."""
    written, saved, write = [], [], output_dirs.write_record
    output_dirs.write_record = lambda *args: (written.append(args), write(*args))
    whole = trainer_of(case, folder / "whole")
    save = whole._save

    def saves_late(*args, **kwargs):
        saved.append(args)
        time.sleep(0.1)
        save(*args, **kwargs)

    whole._save = saves_late
    whole.evaluate()  # of which the run is none the wiser
    whole.train()
    say(f"wrote {len(written)} records and {len(saved)} models")
    torch.save(trained(whole), folder / f"trained-{RANK}.pt")
    if case in KINDS:
        refuses_together(case, folder / "whole")
    killed = trainer_of(case, folder / "killed", callbacks=[Killed()])
    killed.evaluate()
    killed.train()


def refuses_together(case: str, folder: Path) -> None:
    """A second run, another option, no path; the same option is then accepted."""
    for what, given, options in (("anew", None, {}), ("decayed", True, {"weight_decay": 0.5}), ("a number", 3, {})):
        refused(what, lambda: trainer_of(case, folder, **options).train(resume_from_checkpoint=given))  # noqa: B023
    accepted = {"weight_decay": 0.5, "accept_changes": ["weight_decay"], "save_strategy": "no"}
    again = trainer_of(case, folder, **accepted)
    again.train(resume_from_checkpoint=True)
    say(f"decays by {again.optimizer.param_groups[0]['weight_decay']}")


def goes_on(case: str, folder: Path) -> None:
    """What was killed, and since then moved and damaged, to its end."""
    resumed = trainer_of(case, folder / "moved")
    resumed.train(resume_from_checkpoint=True)
    assert_same(torch.load(folder / f"trained-{RANK}.pt"), trained(resumed))
    leave()


def own_disks(case: str, folder: Path) -> None:
    """Each process on a machine of its own, with a folder of its own by the same name."""
    os.environ.update({"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"})
    machines.VISIBLE_WITHIN = 0.2
    own = folder / f"machine-{RANK}"
    own.mkdir()
    os.chdir(own)
    run = partial(trainer_of, case, "run", evaluates=False)
    each = partial(run, save_on_each_node=True)
    refused("one disk", run().train)
    if case == "raft":
        refused("own disks", each().train)
        refused("unlike", run(seed=RANK).train)
        refused("otherwise", lambda: run().train(resume_from_checkpoint=True if RANK else None))
        os.chdir(folder)
        refused("one folder", trainer_of(case, "new", save_on_each_node=True).train)
        leave()
    whole = each()
    whole.train()
    damage(f"run/checkpoint-{STEPS}/optimizer.pt", whole)
    refused("without a file", lambda: each().train(resume_from_checkpoint=f"run/checkpoint-{STEPS}"))
    resumed = each()
    resumed.train(resume_from_checkpoint=True)  # from the one before
    assert_same(trained(whole), trained(resumed))
    say("goes on with the same bits")
    other_moments(f"run/checkpoint-{STEPS}/optimizer.pt", whole)
    longer = {"max_steps": STEPS + 2}
    refused("another's", lambda: each(**longer).train(resume_from_checkpoint=True))
    leave()


class Maps(TrainerCallback):
    """What all processes have mapped stays where it is: a shared drive would take it from other machines."""

    def on_step_end(self, args, state, control, **kwargs):
        assert [*Path(args.output_dir).glob("grow-*/kept-*.arrow")]


def one_disk(case: str, folder: Path) -> None:
    """Each process on a machine of its own, both with one folder; each counts its processes from 1, as a container does."""
    os.environ.update({"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"})
    os.getpid = lambda: 1
    for case in ("raft", "rest"):
        whole = trainer_of(case, folder / case, callbacks=[Maps()], evaluates=False)
        whole.train()
        say(f"{case} left {sorted(path.name for path in (folder / case).glob('grow-*'))}")
        resumed = trainer_of(case, folder / case, evaluates=False)
        resumed.grower = LateView(**vars(resumed.grower))
        resumed.loop.grower = resumed.grower
        resumed.train(resume_from_checkpoint=str(folder / case / "checkpoint-1"))
        assert_same(trained(whole), trained(resumed))
    leave()


class LateView(Grower):
    """On the second machine, a finished Grow is not seen for a moment."""

    def grow(self, stage):
        until, exists = time.monotonic() + 0.5 * RANK, Path.exists
        late = self.files(stage).finished
        Path.exists = lambda path: exists(path) and (path != late or time.monotonic() > until)
        try:
            return super().grow(stage)
        finally:
            Path.exists = exists


def unseeded(case: str, folder: Path) -> None:
    """A new adapter's random numbers are each process's own, and a run returns to them."""
    model = tiny_llama(byte_tokenizer())
    torch.manual_seed(RANK)
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    one = make(case, folder, model=model, ddp_backend="gloo", num_stages=2, restart_from_base=True)
    one.train()
    learned = {name: p for name, p in one.model.named_parameters() if p.requires_grad}
    say(f"learned {sum(bits(parameter) for parameter in learned.values())}")
    leave()


def fails(case: str, folder: Path) -> None:
    """A reward that only the second process cannot have, which must not let the first wait for it."""

    def broken(completions, **columns):
        if RANK:
            raise RuntimeError("the service is away")
        return even_letters(completions)

    rewards = {"reward_funcs": [broken, even_letters]}
    make(case, folder, parts=rewards, ddp_backend="gloo", **({} if case == "ppo" else {"prompts_per_part": 8})).train()


def damage(path: str, trainer) -> None:
    """A file is gone from the second machine."""
    if RANK:
        Path(path).unlink()
    trainer.accelerator.wait_for_everyone()


def other_moments(path: str, trainer) -> None:
    """As of another run, on the second machine."""
    if RANK:
        state = torch.load(path, weights_only=True)
        state["state"][0]["exp_avg"] += 1
        torch.save(state, path)
    trainer.accelerator.wait_for_everyone()


if __name__ == "__main__":
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    torch.set_num_threads(1)
    globals()[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))
