"""What PPO's parts are worth, and PPO beside GRPO, RLOO and TRL 1.12's own."""
