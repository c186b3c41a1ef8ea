"""ReST: a few Grows, several Improves after each."""

from trl_ext.self_training.rest_config import ReSTConfig
from trl_ext.self_training.self_training_trainer import SelfTrainingTrainer


class ReSTTrainer(SelfTrainingTrainer[ReSTConfig]):
    """ReST, reinforced self-training (Gulcehre et al., 2023, arXiv:2308.08998), and ReST^EM (arXiv:2312.06585).

        Grow:       D_g = {(x, y): y ~ π} ∪ D, every pair scored on [0, 1]
        Improve i:  π fine-tuned by cross-entropy on the pairs of D_g with score > τ_i;  τ_1 < τ_2 < …, learning rate falling

    D is the data set's column `completion`. `ReSTConfig(restart_from_base=True)` is ReST^EM: after each Grow the Improve
    begins with the weights that the run began with.

    Relations: one threshold below every score (τ = −∞; `selection="percentile"`, `thresholds=[0.0]`) is SFT on D and the
    policy's own samples, and percentile 1 keeps each prompt's best, as RAFT does. Scores of 0 and 1 with τ = 0 keep what
    is right: expert iteration. Under the maps 'running' and 'grow' another zero or unit of the scores changes nothing.

    Everything else is `SelfTrainingTrainer`'s, and its arguments are the same; `args` is a `ReSTConfig`.
    """

    _tag_names = ["trl", "trl-ext", "rest"]  # noqa: RUF012 - as TRL declares it
    _name = "ReST"
    _paper = {  # noqa: RUF012
        "title": "Reinforced Self-Training (ReST) for Language Modeling",
        "id": "2308.08998",
        "citation": "@article{gulcehre2023reinforced,\n  title = {{Reinforced Self-Training (ReST) for Language Modeling}},\n"
        "  author = {Caglar Gulcehre and others},\n  year = 2023,\n  eprint = {arXiv:2308.08998}\n}",
    }
    config_class = ReSTConfig
