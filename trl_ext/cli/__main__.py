"""`python -m trl_ext.cli`, which is `trl-ext`: for `accelerate launch -m trl_ext.cli ppo …`."""

from trl_ext.cli import main

if __name__ == "__main__":
    main()
