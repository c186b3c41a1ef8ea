"""The best of n by a proxy: what is returned, the curve from one set of samples, and what Gao's form says of it."""

import json
import re
from itertools import combinations
from math import log
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from matplotlib.figure import Figure
from tiny import byte_tokenizer, never_ending, tiny_llama, tiny_reward_model

from trl_ext import RepetitionPenalty, reward_evaluation
from trl_ext.generation.protocol import Part
from trl_ext.reward_evaluation import best_of_n, best_of_n_curve, draw_curves, fit_best_of_n, fit_checkpoints
from trl_ext.reward_evaluation.order_statistics import chances_to_be_best, curve_sizes, nominal_kl

PROXY = np.array([[3.0, 1.0, 3.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0], [5.0, 4.0, 3.0, 2.0, 1.0]])
GOLD = np.array([[0.0, 5.0, 2.0, 1.0, 1.0], [1.0, 2.0, 3.0, 4.0, -7.0], [1.0, 2.0, 2.0, 0.0, 1.0]])


def expected_by_brute_force(proxy: np.ndarray, values: np.ndarray, n: int) -> list[float]:
    """Of each prompt: every subset of n, the value of its best by the proxy, of equal ones their mean."""
    found = []
    for own, worth in zip(proxy, values, strict=True):
        chosen = []
        for subset in combinations(range(len(own)), n):
            top = max(own[i] for i in subset)
            chosen.append(np.mean([worth[i] for i in subset if own[i] == top]))
        found.append(float(np.mean(chosen)))
    return found


def length(completions, **columns):
    return [float(len(text)) for text in completions]


def codes(completions, **columns):
    return [sum(map(ord, text)) / 100 for text in completions]


# The curve


def test_the_curve_is_what_all_subsets_say():
    curve = best_of_n_curve(PROXY, GOLD, sizes=[1, 2, 3, 5])
    for i, n in enumerate(curve.sizes):
        for centre, scores, found in (
            (curve.proxy_centre, PROXY, curve.proxy_by_prompt),
            (curve.gold_centre, GOLD, curve.gold_by_prompt),
        ):
            expected = expected_by_brute_force(PROXY, (scores - scores.mean()) / scores.std(), n)
            np.testing.assert_allclose(found[:, i], expected, atol=1e-12)
            assert centre == pytest.approx((scores.mean(), scores.std()))


def test_the_curve_by_hand():
    # proxy 0, 1 and gold 4, 2: the start has mean ½ and 3, deviation ½ and 1; the best of 2 is the second
    curve = best_of_n_curve([[0.0, 1.0]], [[4.0, 2.0]])
    assert curve.sizes == [1, 2] and curve.kl == [0.0, log(2) - 0.5]
    assert curve.proxy.tolist() == [0.0, 1.0] and curve.gold.tolist() == [0.0, -1.0]
    assert np.isnan(curve.gold_errors).all()  # of one prompt


def test_centring_takes_away_offset_and_scale():
    one, other = best_of_n_curve(PROXY, GOLD), best_of_n_curve(7 + 3 * PROXY, 0.1 * GOLD - 5)
    np.testing.assert_allclose(one.proxy_by_prompt, other.proxy_by_prompt, atol=1e-12)
    np.testing.assert_allclose(one.gold_by_prompt, other.gold_by_prompt, atol=1e-12)
    assert one.gold[0] == pytest.approx(0) and one.proxy[0] == pytest.approx(0)


def test_errors_are_of_the_gain_over_a_random_choice():
    curve = best_of_n_curve(PROXY, GOLD)
    gains = curve.gold_by_prompt[:, -1] - curve.gold_by_prompt[:, 0]
    assert curve.gold_errors[-1] == pytest.approx(gains.std(ddof=1) / 3**0.5)
    assert curve.gold_errors[0] == 0


def test_equal_prompts_count_as_one():
    alone = best_of_n_curve(PROXY, GOLD)
    twice = best_of_n_curve(np.tile(PROXY, (2, 1)), np.tile(GOLD, (2, 1)), prompts=["a", "b", "c"] * 2)
    np.testing.assert_allclose(twice.gold_by_prompt, alone.gold_by_prompt, atol=1e-12)
    np.testing.assert_allclose(twice.gold_errors, alone.gold_errors)


def test_shares_of_samples_that_repeat_and_tie():
    curve = best_of_n_curve(PROXY, texts=[list("abcde"), list("aabbc"), list("aaaaa")])
    assert curve.repeated == pytest.approx(9 / 15)  # none, four, five
    assert curve.tied == pytest.approx(6 / 15)  # two, four, none
    assert curve.gold is None and curve.fit is None and "gold" not in str(curve).splitlines()[0]


def test_a_prompt_to_which_gold_never_applies_is_left_out_aloud():
    gold = GOLD.tolist()
    gold[1] = [None] * 5
    curve, alone = best_of_n_curve(PROXY, gold), best_of_n_curve(PROXY[[0, 2]], GOLD[[0, 2]])
    np.testing.assert_allclose(curve.gold_by_prompt, alone.gold_by_prompt)
    np.testing.assert_allclose(curve.proxy_by_prompt, alone.proxy_by_prompt)
    assert curve.left_out == 1 and "does not apply to 1 further prompts" in str(curve)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"proxy": [[1.0, None]]}, "sample 1 of prompt 0 has no score"),
        ({"proxy": [[1.0, 2.0]], "gold": [[1.0, None]]}, "some samples of prompt 0 have no score"),
        ({"proxy": [[1.0, 2.0]], "gold": [[None, None]]}, "all samples have no score"),
        ({"proxy": [[1.0, 2.0]], "gold": [[5.0, 7.0]]}, "scores every sample as the proxy does"),
        ({"proxy": [[1.0, 1.0]]}, "all samples have the score 1"),
        ({"proxy": [[1.0, 2.0]], "gold": [[1.0]]}, "expected the proxy's shape"),
        ({"proxy": [[1.0], [2.0, 3.0]]}, "as many for each prompt"),
        ({"proxy": [[1.0, float("inf")]]}, "expected finite numbers"),
        ({"proxy": [[0.1, 0.1 + 1e-9]]}, "all samples have the score 0.1"),
        ({"proxy": [[1.0, 2.0]], "sizes": [1, 3]}, "expected n from 1 to 2"),
        ({"proxy": [[1.0, 2.0]], "sizes": [1.5]}, r"sizes=\[1\.5\]\): expected a list of whole numbers"),
        ({"proxy": [[1.0, 2.0]], "sizes": 2}, "sizes=2"),
        ({"proxy": [[1.0, 2.0]], "prompts": ["a", "b"]}, r"prompts=…\): expected 1 texts"),
        ({"proxy": [[1.0, 2.0]], "prompts": [{}]}, "can be told apart"),
        ({"proxy": [[1.0, 2.0]], "texts": [["a"]]}, r"texts=…\): expected 2 texts"),
    ],
)
def test_what_makes_no_curve_is_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        best_of_n_curve(**arguments)


@pytest.mark.parametrize("n", [1, 7, 512, 1024])
def test_chances_sum_to_one_also_of_many(n):
    scores = np.random.default_rng(0).integers(0, 40, size=(3, 1024)).astype(float)
    np.testing.assert_allclose(chances_to_be_best(scores, n).sum(1), 1.0, atol=1e-9)


def test_sizes_are_powers_of_two_and_the_number_itself():
    assert curve_sizes(1) == [1] and curve_sizes(8) == [1, 2, 4, 8] and curve_sizes(9) == [1, 2, 4, 8, 9]


def test_few_prompts_are_said():
    proxy = np.random.default_rng(0).normal(size=(30, 4))
    assert "fewer than 30" not in str(best_of_n_curve(proxy))
    assert "29 prompts; " in str(few := best_of_n_curve(proxy[1:])) and "fewer than 30: errors ± and" in str(few)


def test_the_curve_as_json_and_picture(tmp_path):
    pytest.importorskip("matplotlib")
    random = np.random.default_rng(0)
    proxy = random.normal(size=(6, 16))
    curve = best_of_n_curve(proxy, proxy + random.normal(size=proxy.shape))
    found = json.loads(json.dumps(curve.as_dict(), allow_nan=False))
    assert found["n"] == [1, 2, 4, 8, 16] and found["fit"]["alpha"] == pytest.approx(curve.fit.alpha)
    curve.save_png(tmp_path / "one.png")
    draw_curves(tmp_path / "two.png", {"a": curve, "b": best_of_n_curve(proxy)})
    for name in ("one", "two"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    json.dumps(best_of_n_curve([[0.0, 1.0]]).as_dict(), allow_nan=False)  # errors of one prompt are unknown
    with pytest.raises(ValueError, match=r"draw_curves\(curves=…\): 'b' is of type list: expected a curve.*`curve`"):
        draw_curves(tmp_path / "three.png", {"a": curve, "b": [0.0, 1.0]})


# Gao's forms


def test_no_name_is_written_over_a_point(tmp_path, monkeypatch):
    """Of a gold that turns down, which is at the upper left where a proxy is not."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: [figures.append(figure), save(figure, *a, **k)])
    proxy = np.random.default_rng(0).normal(size=(40, 32))
    gold = -(proxy**2) + np.random.default_rng(1).normal(size=proxy.shape)
    curve = best_of_n_curve(proxy, gold)
    draw_curves(tmp_path / "two.png", {"with imitation": curve, "without it": curve})
    for axes in figures[0].axes:
        names = axes.get_legend().get_window_extent()
        points = [
            axes.transData.transform(line.get_xydata()) for line in axes.get_lines() if len(line.get_xdata()) > 2
        ]
        assert points and not any(names.contains(*point) for line in points for point in line)


def test_a_curve_of_gaos_form_is_found_again():
    kl = [nominal_kl(n) for n in (1, 2, 4, 8, 16, 32, 64)]
    d = np.sqrt(kl)
    fit = fit_best_of_n(kl, (d * (0.9 - 0.3 * d))[None] + np.array([[0.0], [0.0]]))
    assert (fit.alpha, fit.beta) == pytest.approx((0.9, 0.3)) and fit.peak == pytest.approx(1.5)
    assert fit.gold_at_peak == pytest.approx(1.5 * (0.9 - 0.45)) and fit.residual == pytest.approx(0, abs=1e-12)
    assert fit.alpha_interval == pytest.approx((0.9, 0.9)) and fit.peak_interval == pytest.approx((1.5, 1.5))


def test_a_peak_beyond_the_largest_distance_is_not_reached():
    kl = np.array([0.0, 1.0, 2.0, 4.0])
    d = np.sqrt(kl)
    for beta in (0.1, -0.2):  # d* = 5, or none
        fit = fit_best_of_n(kl, (d - beta * d**2)[None])
        assert fit.peak is None and fit.gold_at_peak is None and "not reached (the largest d is 2.00)" in str(fit)
        assert fit.as_dict()["peak"] is None
        json.dumps(fit.as_dict(), allow_nan=False)


def test_gold_that_only_falls_is_highest_at_the_start():
    """Of a β below 0 the form would rise again, far behind what was seen."""
    kl = np.array([0.0, 1.0, 2.0, 4.0])
    d = np.sqrt(kl)
    for alpha, beta in ((-1.0, 0.2), (-1.0, 0.0), (-1.0, -0.4)):  # at d = 2: below 0, as everywhere before
        fit = fit_best_of_n(kl, (alpha * d - beta * d**2)[None])
        assert fit.peak == 0 and fit.gold_at_peak == 0 and "peak d* 0.00, KL 0.00, gold 0.00" in str(fit)
    assert fit_best_of_n(kl, (-1.0 * d + 0.6 * d**2)[None]).peak is None  # 0.4 at d = 2, and still rising
    points = [(x * x, x * (-1.0 + 0.2 * np.log(x))) for x in (0.5, 1.0, 2.0, 4.0)]
    assert fit_checkpoints(points).peak == 0


def test_intervals_come_of_prompts():
    """As many prompts again halve the interval's square; equal ones have none."""
    random, kl = np.random.default_rng(0), [nominal_kl(n) for n in (1, 2, 4, 8, 16)]
    d = np.sqrt(kl)
    gold = d * (random.normal(1.0, 0.3, size=(400, 1)) - random.normal(0.3, 0.1, size=(400, 1)) * d)
    widths = [np.diff(fit_best_of_n(kl, gold[:count]).alpha_interval)[0] for count in (50, 400)]
    assert widths[0] / widths[1] == pytest.approx(8**0.5, rel=0.25)
    low, high = fit_best_of_n(kl, gold).alpha_interval
    assert low < 1.0 < high


def test_checkpoints_of_runs():
    d = np.array([0.5, 1.0, 2.0, 4.0])
    points = [(x * x, x * (1.0 - 0.5 * np.log(x))) for x in d]
    fit = fit_checkpoints([(0.0, 0.0), *points])
    assert (fit.alpha, fit.beta) == pytest.approx((1.0, 0.5)) and fit.peak == pytest.approx(np.e)
    assert np.isnan(fit.alpha_interval[0])
    both = fit_checkpoints(points * 2, runs=["a"] * 4 + ["b"] * 4)
    assert both.alpha_interval == pytest.approx((1.0, 1.0))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: fit_best_of_n([0, 1, 2], [[0, 1, 2]]), "at least 3 different values of KL above 0, got 2"),
        (lambda: fit_best_of_n([0, 1, 2, 3], [[0, 1, 2]]), "each of 4 values of KL"),
        (lambda: fit_best_of_n([0, -1, 2, 3], [[0, 1, 2, 3]]), "KL of 0 or more nats, got -1"),
        (lambda: fit_checkpoints([(1, 1), (2, 2), (3, float("nan"))]), "finite numbers"),
        (lambda: fit_checkpoints([(1, 1), (2, 2), (3, 3)], runs=["a"]), "the run of each of 3 points, got 1"),
        (lambda: fit_checkpoints([(1, 1), (2, 2), (3, 3)], runs=[["a"]] * 3), "the run of each of 3 points"),
        (lambda: fit_checkpoints([("a", 1)]), r"fit_checkpoints\(points=…\): expected finite numbers"),
        (lambda: fit_checkpoints([1, 2, 3]), "expected pairs of KL and gold"),
        (lambda: fit_best_of_n([0, 1, 2, 3], [[0], [1, 2]]), r"fit_best_of_n\(gold=…\): expected finite numbers"),
        (lambda: draw_curves("curves.png", {}), "expected at least one curve"),
    ],
)
def test_what_cannot_be_fitted_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()


# Sampling


@pytest.fixture
def policy():
    return tiny_llama(byte_tokenizer())


def sampled(policy, reward=codes, prompts=("why? ", "say it "), **changes):
    options = {"n": 8, "max_completion_length": 6, "tokenizer": byte_tokenizer()} | changes
    return best_of_n(policy, reward, list(prompts), **options)


def test_the_best_of_each_prompt_is_returned(policy):
    found = sampled(policy, gold=length)
    assert found.best["row"][:] == [0, 1] and len(found.samples) == 16
    for row in (0, 1):
        own = [sample for sample in found.samples if sample["row"] == row]
        assert found.best[row]["proxy"] == max(sample["proxy"] for sample in own)
        assert found.best[row]["gold"] == len(found.best[row]["completion"])
        assert [sample["proxy"] for sample in own] == codes([sample["completion"] for sample in own])
    assert found.curve.sizes == [1, 2, 4, 8]
    assert found.curve.proxy[-1] == pytest.approx(
        np.mean([found.curve.proxy_centre.applied(row["proxy"]) for row in found.best])
    )


def test_a_part_at_a_time_gives_the_same(policy, monkeypatch):
    whole = sampled(policy)
    monkeypatch.setattr("trl_ext.reward_evaluation.best_samples.TOGETHER", 8)
    assert sampled(policy).samples.to_list() == whole.samples.to_list()


def test_a_reward_model_and_columns(policy):
    rows = Dataset.from_list([{"prompt": "why? ", "letter": "a"}, {"prompt": "say ", "letter": "b"}])

    def named(completions, letter, **columns):
        return [float(text.count(one)) + len(text) for text, one in zip(completions, letter, strict=True)]

    judge = tiny_reward_model(byte_tokenizer())
    judge.config._name_or_path = ""
    from trl_ext import LearnedReward

    found = best_of_n(
        policy, LearnedReward(judge, byte_tokenizer()), rows, n=4, gold=named, max_completion_length=4,
        tokenizer=byte_tokenizer(),
    )  # fmt: skip
    assert len(found.best) == 2 and found.curve.gold is not None
    with pytest.raises(ValueError, match="reads the column `letter`"):
        sampled(policy, named)


def test_gold_and_proxy_of_the_same_weights_are_refused(policy, tmp_path):
    from trl_ext import LearnedReward

    for seed in (0, 1):
        tiny_reward_model(byte_tokenizer(), seed=seed).save_pretrained(tmp_path / f"rm-{seed}")
        byte_tokenizer().save_pretrained(tmp_path / f"rm-{seed}")
    path, options = tmp_path / "rm-0", {"n": 4, "prompts": ["why? "]}
    for gold in (path, f"{path}/", LearnedReward(str(path))):
        with pytest.raises(ValueError, match="both are the same"):
            sampled(policy, str(path), gold=gold, **options)
    assert sampled(policy, str(path), gold=str(tmp_path / "rm-1"), **options).curve.gold is not None


class Few:
    """A generator that leaves out a sample of the second prompt, or the prompt itself."""

    name = "few"

    def __init__(self, *, all_of_it: bool):
        self.all_of_it = all_of_it

    def settings(self):
        return {}

    def generate(self, parts, sampling, policy):
        from trl_ext.generation import TransformersGenerator

        for part, samples in TransformersGenerator().generate(parts, sampling, policy):
            if self.all_of_it:
                yield Part(0, part.rows[:1], part.prompts[:1]), [s for s in samples if s["row"] == 0]
            else:
                yield part, samples[:-1]


@pytest.mark.parametrize(("all_of_it", "count"), [(True, 0), (False, 7)])
def test_fewer_samples_than_n_are_refused(policy, all_of_it, count):
    with pytest.raises(ValueError, match=rf"n=8, generator='few'\): the prompt of row 1 has {count} samples"):
        sampled(policy, generator=Few(all_of_it=all_of_it))


class Backwards:
    """A generator that hands out the last sample first."""

    name = "backwards"

    def settings(self):
        return {}

    def generate(self, parts, sampling, policy):
        from trl_ext.generation import TransformersGenerator

        for part, samples in TransformersGenerator().generate(parts, sampling, policy):
            yield part, samples[::-1]


def test_samples_of_a_prompt_are_together_and_in_order(policy):
    found = sampled(policy, generator=Backwards())
    places = [(row, sample) for row in (0, 1) for sample in range(8)]
    assert list(zip(found.samples["row"], found.samples["sample"], strict=True)) == places
    assert found.samples.to_list() == sampled(policy).samples.to_list()


def test_seed_and_temperature_reach_the_sampler(policy):
    one, again, other = (sampled(policy, seed=seed).samples["completion"][:] for seed in (0, 0, 1))
    assert one == again != other
    greedy = sampled(policy, temperature=0).samples["completion"][:]
    assert len(set(one[:8])) > 1 == len(set(greedy[:8]))


def none_for_long(completions, **columns):
    return [None] * len(completions)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n": 0}, r"best_of_n\(n=0\)"),
        ({"reward": None}, "expected one reward"),
        ({"reward": [length, codes]}, "expected one reward"),
        ({"gold": [length]}, r"best_of_n\(gold="),
        ({"gold": codes}, "both are the same"),
        ({"reward": RepetitionPenalty(), "gold": RepetitionPenalty()}, "both are the same"),
        ({"reward": none_for_long}, "does not apply to sample 0 of the prompt of row 0"),
        ({"prompts": []}, "is empty"),
        ({"prompts": ["why? ", 3]}, r"best_of_n\(prompts=…\)"),
        ({"generator": "vllm"}, "expected a generator"),
    ],
)
def test_bad_input_is_refused(policy, changes, said):
    with pytest.raises(ValueError, match=said):
        sampled(policy, **changes)


@pytest.mark.slow
def test_the_demos_models_in_ten_lines(tmp_path, monkeypatch, capsys):
    """As the room's page prints them, of fewer and shorter samples."""
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    text = Path(reward_evaluation.__file__).with_name("README.md").read_text()
    (program,) = [code for code in re.findall(r"```python\n(.*?)```", text, re.S) if "trl_ext_demo" in code]
    assert sum(bool(line.strip()) for line in program.splitlines()) <= 10
    small = {"n=64": "n=8", "max_completion_length=48": "max_completion_length=8", "count=200": "count=20"}
    for printed, ours in small.items():
        assert printed in program
        program = program.replace(printed, ours)
    models = {"sft": tiny_llama(byte_tokenizer(), max_position_embeddings=1024)}
    for seed, name in enumerate(("reward", "reward_without_imitation")):
        models[name] = tiny_reward_model(byte_tokenizer(), seed=seed, max_position_embeddings=1024)
    for name, model in models.items():
        model.save_pretrained(f"trl_ext_demo/{name}")
        byte_tokenizer().save_pretrained(f"trl_ext_demo/{name}")
    exec(program, names := {})
    assert len(names["found"].best) == 32 and names["found"].curve.sizes == [1, 2, 4, 8]
    assert Path("best_of_n.png").read_bytes().startswith(b"\x89PNG")
    assert "reward_without_imitation less reward" in (said := capsys.readouterr().out) and "R = d (α − β d)" in said


def test_equal_prompts_get_samples_of_their_own(policy):
    found = sampled(never_ending(policy), prompts=["why? ", "why? "])
    assert found.samples[0]["completion"] != found.samples[8]["completion"]
    assert len(found.curve.proxy_by_prompt) == 1
