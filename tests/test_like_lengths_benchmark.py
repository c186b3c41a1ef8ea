"""examples/benchmarks/speed/like_lengths.py: what each kind of micro-batch computes."""

from argparse import Namespace

from examples.benchmarks.speed import like_lengths as benchmark


def test_kinds_compute_less_where_lengths_differ_and_as_much_where_not(tmp_path):
    trainer = benchmark.step_trainer(tmp_path, Namespace(size="tiny", batch=8, micro_batch=2))
    varied, equal = (benchmark.rollout_of(trainer, 8, *lengths) for lengths in ((2, 9), (9, 9)))
    tokens = {
        name: [benchmark.seconds(trainer, rollout, kind)[1] for kind in benchmark.KINDS]
        for name, rollout in {"varied": varied, "equal": equal}.items()
    }
    whole, cut, ordered = tokens["varied"]
    assert whole == 8 * 18 and ordered < cut < whole
    assert tokens["equal"] == [8 * 18] * 3
