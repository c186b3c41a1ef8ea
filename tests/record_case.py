"""In two processes: one record, and a start that is refused in both.

torchrun --nproc-per-node=2 record_case.py KIND FOLDER
"""

import sys
from pathlib import Path

import torch
from checkpoint_case import STEPS, make
from two_processes import leave

from trl_ext.trainer_kit import output_dirs


def two_processes(kind: str, folder: Path) -> None:
    written = []
    write = output_dirs.write_record
    output_dirs.write_record = lambda *args: (written.append(args), write(*args))
    one = make(kind, folder, ddp_backend="gloo", save_steps=STEPS)
    one.train()
    me = f"process {one.accelerator.process_index}"
    say(f"{me} wrote {len(written)}")
    for resume, options in ((None, {}), (True, {"weight_decay": 0.5}), (3, {})):
        try:
            make(kind, folder, ddp_backend="gloo", **options).train(resume_from_checkpoint=resume)
        except (ValueError, RuntimeError) as error:
            say(f"{me} refused: {type(error).__name__}: {error}")
    again = make(
        kind, folder, ddp_backend="gloo", weight_decay=0.5, accept_changes=["weight_decay"], save_strategy="no"
    )
    again.train(resume_from_checkpoint=True)
    say(f"{me} decays by {again.optimizer.param_groups[0]['weight_decay']}")
    leave()


def say(line: str) -> None:
    print(f"\n{line}\n", end="", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    two_processes(sys.argv[1], Path(sys.argv[2]))
