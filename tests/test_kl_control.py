import pytest
from ppo_case import logged, ppo_trainer

from trl_ext.ppo.kl_control import KLController


def test_by_hand():
    control = KLController(beta=0.2, target=6.0, horizon=10_000)
    control.update(6.6, completions=100)  # a tenth above: e = .1
    assert control.beta == pytest.approx(0.2 * (1 + 0.1 * 100 / 10_000))
    control = KLController(beta=0.2, target=6.0, horizon=1000)
    control.update(0.0, completions=500)  # e = −1, clipped to −.2
    assert control.beta == pytest.approx(0.2 * (1 - 0.2 * 0.5))


def test_without_a_target_it_stays():
    control = KLController(beta=0.2)
    control.update(100.0, completions=10**6)
    assert control.beta == 0.2


def test_it_stays_within_bounds_and_comes_back():
    control = KLController(beta=0.1, target=1.0, horizon=10)
    for _ in range(1000):
        control.update(50.0, completions=10)
    assert control.beta == pytest.approx(10.0)
    for _ in range(1000):
        control.update(-50.0, completions=10)
    assert control.beta == pytest.approx(0.001)


def test_it_keeps_a_policy_near_the_target(tmp_path):
    """The same run, with β fixed and moved: KL ends nearer to the target, and β is what is charged."""

    def run(name, **options):
        trainer = ppo_trainer(
            tmp_path / name, per_device_train_batch_size=16, max_steps=60, num_iterations=1, beta=0.02, **options
        )
        trainer.train()
        return trainer

    fixed = run("fixed")
    moved = run("moved", adaptive_kl=True, kl_target=0.5, kl_horizon=60)
    assert set(logged(fixed, "beta")) == {0.02}
    assert logged(moved, "beta")[-1] > 0.1
    far, near = (sum(logged(run, "kl_per_completion")[-10:]) / 10 for run in (fixed, moved))
    assert abs(near - 0.5) < abs(far - 0.5)


def test_the_reward_charges_the_moved_price(tmp_path, monkeypatch):
    from trl_ext.ppo import walk as module

    charged, real = [], module.token_rewards

    def spy(*args, beta):
        charged.append(beta)
        return real(*args, beta=beta)

    monkeypatch.setattr(module, "token_rewards", spy)
    trainer = ppo_trainer(tmp_path, max_steps=6, num_iterations=1, adaptive_kl=True, kl_target=0.01, kl_horizon=4)
    trainer.train()
    assert charged == logged(trainer, "beta") and len(set(charged)) > 1


def test_target_and_horizon_are_checked(tmp_path):
    with pytest.raises(
        ValueError, match=r"PPOConfig\(adaptive_kl=True, kl_target=None\): expected the KL per completion"
    ):
        ppo_trainer(tmp_path, adaptive_kl=True)
    with pytest.raises(ValueError, match=r"kl_target=6\.0\) does nothing without adaptive_kl=True"):
        ppo_trainer(tmp_path, kl_target=6.0)
    with pytest.raises(ValueError, match=r"adaptive_kl=True, beta=0\): without `beta` there is no reference"):
        ppo_trainer(tmp_path, adaptive_kl=True, kl_target=6.0, beta=0.0)
    with pytest.raises(ValueError, match=r"kl_horizon=0\): it must be in"):
        ppo_trainer(tmp_path, adaptive_kl=True, kl_target=6.0, kl_horizon=0)
