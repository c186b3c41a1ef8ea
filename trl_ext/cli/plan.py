"""`trl-ext plan`: will a run fit the card? By arithmetic from the model's configuration; nothing is loaded."""

from argparse import ArgumentParser, BooleanOptionalAction, Namespace

from trl_ext.memory_planning.card_sizes import card_bytes, sold_size
from trl_ext.memory_planning.plan_settings import METHODS, PlanSettings

DESCRIPTION = """\
Predict the peak of memory of each phase of a run, compare it with a card, and name the cheapest changes that make it
fit. MODEL is a path or hub id of any causal language model, of which config.json alone is read, or one of llama-2-7b,
llama-2-13b, mistral-7b, llama-3.1-8b, llama-3.1-70b, qwen2.5-7b, qwen3-8b, gemma-2-9b. A run with its YAML and rows is
planned by its own command, as trl-ext ppo --config FILE.yaml --dry_run --card 24GB. Ends with 0 if it fits or there is no
card to compare with, 1 if it does not, 2 for bad input."""
NUMBERS = {
    "batch": "completions sampled at once, the batch of one step",
    "micro_batch": "sequences per pass in training; of a reward model, pairs",
    "prompt_length": "longest prompt, in tokens",
    "completion_length": "longest completion, in tokens",
    "reward_models": "learned reward models beside the policy",
    "reward_batch": "completions per pass of a reward model",
    "reduce_bucket_size": "with --shard zero2 or zero3: gradients exchanged at once, in numbers",
    "max_live_parameters": "with --shard zero3: whole weights beyond a layer, in numbers",
}
SWITCHES = {
    "gradient_checkpointing": "compute activations anew in the backward pass",
    "reentrant": 'with gradient_checkpointing_kwargs={"use_reentrant": True}',
    "value_model": "PPO's critic is a model; if not, a head on the policy",
    "reference": "charge for KL to a reference",
    "imitation": "train a reward model with the imitation term",
    "autocast": "train weights in fp32 in 16 bits (bf16=True over a model in fp32)",
    "shared": "one base for all roles; if not, each has its own; unless given, not where --shard cuts",
    "imitation_head": "with --imitation: a vocabulary head of its own (imitation_head=…)",
    "policy_passes": "with --generator endpoint or file: beta, importance_clip or held-out prompts pass the policy all the same",
    "sync_each_batch": "with --shard fsdp2: cut gradients after each micro-batch, not after a step's last",
}


LENGTHS = {
    "prompts": "prompts of the whole run, of a reward model pairs (default: of one batch)",
    "max_steps": "steps of the whole run",
    "epochs": "times that each completion is trained on (default: the method's)",
}


def add_plan(commands) -> None:
    """Add the command to argparse's subparsers."""
    parser = commands.add_parser(
        "plan",
        help="will a run fit the card? nothing is loaded",
        description=DESCRIPTION,
        example="trl-ext plan MODEL --bits 8 --gpu 24GB",
    )
    parser.add_argument("model", metavar="MODEL")
    _add_what(parser)
    _add_time(parser)
    sizes = parser.add_argument_group("sizes").add_argument
    for name, text in NUMBERS.items():
        default = getattr(PlanSettings, name)
        sizes(_option(name), type=int, default=default, metavar="N", help=f"{text} (default: %(default)s)")
    sizes("--num-generations", type=int, metavar="K", help="completions per prompt (default: 1 for ppo, else 8)")
    switches = parser.add_argument_group("switches").add_argument
    for name, text in SWITCHES.items():
        default = getattr(PlanSettings, name)
        switches(_option(name), action=BooleanOptionalAction, default=default, help=f"{text} (default: {default})")
    parser.set_defaults(run=run, when_stopped="Give the command again.")


def _add_what(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("what is run").add_argument
    add("--method", default="ppo", help=f"one of {', '.join(METHODS)} (default: %(default)s)")
    add("--bits", type=int, help="8 or 4 for a quantised base; 16: not quantised, the default")
    add("--dtype", default="bfloat16", help="of what is not quantised (default: %(default)s)")
    text = "rank of adapters; 0: train all weights (default: %(default)s)"
    add("--lora", type=int, default=16, metavar="R", help=text)
    add("--optimizer", default="adamw", help="adamw, adamw_8bit or paged_adamw_8bit (default: %(default)s)")
    text = "who samples: transformers, vllm, of raft and rest also endpoint or file (default: %(default)s)"
    add("--generator", default="transformers", help=text)
    add("--served-bits", type=int, help="as --bits, of the base that vLLM serves")
    text = "judges and reward models that are other models, each with a base of its own, beside --reward-models"
    add("--judges", nargs="+", default=(), metavar="MODEL", help=text)
    add("--judge-bits", type=int, help="as --bits, of the judges")
    text = "completions that vLLM holds keys and values of, others wait (default: the batch)"
    add("--served-at-once", type=int, metavar="N", help=text)
    add("--num-gpus", type=int, default=1, metavar="N", help="cards of --shard; sizes are each card's")
    text = "what each card holds: ddp: all; fsdp2, zero3: a part of weights, gradients and optimizer states; zero2: not of weights"
    add("--shard", help=text)
    text = 'the card, e.g. "RTX 4090"; or its size: 24GB as sold, 23.5GiB exactly (default: the one at hand)'
    add("--gpu", metavar="CARD", help=text)


def _add_time(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("time").add_argument
    add("--hours", action="store_true", help="how long it takes at least on a card, which --gpu names")
    for name, text in LENGTHS.items():
        add(_option(name), type=int, metavar="N", help=f"with --hours: {text}")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def run(args: Namespace) -> None:
    """Run the command; ends with code 1 where it does not fit."""
    from trl_ext.memory_planning.plan_report import print_plan
    from trl_ext.memory_planning.planning import memory_plan

    names = (
        "method",
        "bits",
        "dtype",
        "optimizer",
        "num_generations",
        "generator",
        "served_bits",
        "served_at_once",
        "judges",
        "judge_bits",
        "num_gpus",
        "shard",
        *NUMBERS,
        *SWITCHES,
    )
    card, card_name = the_card(args.gpu)
    bound_of = _bound_of(args, card_name)
    settings = {name: getattr(args, name) for name in names}
    _check_words(args)
    plan = memory_plan(args.model, **settings, lora=args.lora or None)
    time = None if bound_of is None else plan.time_bound(bound_of, **{name: getattr(args, name) for name in LENGTHS})
    print_plan(plan, card, card_name=card_name, time=time)
    if card is not None and plan.verdict(card) == "does not fit":
        raise SystemExit(1)


def _check_words(args: Namespace) -> None:
    """Raise a ValueError in the command's words where `memory_plan` has others: no bits are 16, no adapter is 0."""
    for name in ("bits", "served_bits", "judge_bits"):
        if getattr(args, name) not in (None, 16, 8, 4):
            raise ValueError(
                f"trl-ext plan {_option(name)} {getattr(args, name)}: expected 16, 8 or 4. Give 16 for weights that are "
                "not quantised."
            )
    if args.lora < 0:
        raise ValueError(f"trl-ext plan --lora {args.lora}: expected a rank from 1 on. Give 0 to train all weights.")
    if args.lora == 0 and args.bits in (8, 4):
        raise ValueError(
            f"trl-ext plan --bits {args.bits} --lora 0: quantised weights are frozen, so there would be nothing to train. "
            "Give a LoRA rank, e.g. --lora 16, or --bits 16."
        )


def _bound_of(args: Namespace, card_name: str):
    """The card whose time is asked for; None without --hours."""
    from trl_ext.memory_planning.card_speeds import card_named, sold_with

    if not args.hours:
        given = [_option(name) for name in LENGTHS if getattr(args, name) is not None]
        if given:
            raise ValueError(f"trl-ext plan {given[0]}: it says how long a run is. Give --hours too, or leave it out.")
        return None
    if not card_name:
        raise ValueError('trl-ext plan --hours: there is no card here. Name one, e.g. --gpu "RTX 4090".')
    if sold_size(card_name):
        alike = [f'"{name}"' for name in sold_with(float(sold_size(card_name)[1]))]
        named = f"one of those with as much: {', '.join(alike)}" if alike else 'e.g. "RTX 4090"'
        raise ValueError(
            f"trl-ext plan --hours --gpu {card_name}: a size does not say how fast a card is. Give its name, {named}."
        )
    return card_named(card_name, call="trl-ext plan --hours --gpu")


def the_card(given: str | None, *, flag: str = "trl-ext plan --gpu") -> tuple[int | None, str]:
    """Bytes and name of the card asked for by a flag, by name or size, or of the one at hand; None where there is none."""
    if given is not None:
        return card_bytes(given, flag=flag), given
    import torch

    if not torch.cuda.is_available():
        return None, ""
    return torch.cuda.mem_get_info()[1], torch.cuda.get_device_name()
