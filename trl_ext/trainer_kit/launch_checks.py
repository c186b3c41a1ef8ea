"""What accelerate is told by its file, its flags or the environment, and a trainer's config otherwise: refused by name."""

import os

from transformers import Trainer, TrainingArguments

from trl_ext.trainer_kit.refusals import Refusal, refuse_settings


def check_before(args: TrainingArguments) -> None:
    """Raise a ValueError for what a trainer that makes its accelerator would take for a setting of its own, too late."""
    steps = (args.accelerator_config.gradient_accumulation_kwargs or {}).get("num_steps", 1)
    if steps not in (None, 1):
        raise ValueError(
            f"{type(args).__name__}(accelerator_config={{'gradient_accumulation_kwargs': {{'num_steps': {steps}}}}}): batches "
            f"are planned before that is read. Write gradient_accumulation_steps={steps}."
        )


def check_launch(trainer: Trainer) -> None:
    """Raise a ValueError where accelerate was told what contradicts the config, one of which would be passed over."""
    several = trainer.accelerator.num_processes > 1
    call = f"{type(trainer).__name__}(args={type(trainer.args).__name__}(…))"
    refuse_settings([*_of_launch(trainer), *(_of_batches(trainer.args) if several else ())], call=call)


def _of_launch(trainer: Trainer) -> list[Refusal]:
    """What accelerate's file, its flags and the environment may say."""
    args, accelerator = trainer.args, trainer.accelerator
    own = "fp16" if args.fp16 else "bf16" if args.bf16 else "no"
    precisions = (os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower(), accelerator.mixed_precision)
    other = next((precision for precision in precisions if precision not in ("no", own)), None)
    instead = f", or the config's to {other!r}" if other in ("bf16", "fp16") else ""
    steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    compiler = accelerator.state.dynamo_plugin.backend.value.lower()
    return [
        (
            other is not None,
            f"accelerate's mixed_precision={other!r} beside bf16={args.bf16}, fp16={args.fp16}",
            "one of the two would be passed over",
            f"Set accelerate's to 'no'{instead}",
        ),
        (
            steps.isdecimal() and int(steps) not in (1, args.gradient_accumulation_steps),
            f"accelerate's gradient_accumulation_steps={steps} beside {args.gradient_accumulation_steps}",
            "the config's counts, and accelerate's would be passed over",
            "Set both to the same, or accelerate's to 1",
        ),
        (
            compiler != "no" and not args.torch_compile,
            f"accelerate's dynamo_backend={compiler!r} beside torch_compile=False",
            "the model would be compiled all the same",
            "Set accelerate's to 'no', or torch_compile=True",
        ),
    ]


def _of_batches(args: TrainingArguments) -> list[Refusal]:
    """How batches may come to several processes."""
    config = args.accelerator_config
    return [
        (
            bool(config.split_batches),
            "accelerator_config={'split_batches': True}",
            "a step would have a part of the rows that are planned for it, per_device_train_batch_size for each process",
            "Leave it out",
        ),
        (
            bool(config.dispatch_batches),
            "accelerator_config={'dispatch_batches': True}",
            "each process reads and pads batches of its own, which one alone cannot deal out to all",
            "Leave it out",
        ),
        (
            not config.even_batches,
            "accelerator_config={'even_batches': False}",
            "processes with unequally many batches would wait for each other for ever",
            "Leave it out",
        ),
    ]
