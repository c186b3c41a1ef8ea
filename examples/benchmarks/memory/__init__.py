"""The memory plan beside real runs, 7B on a card, 8 bits."""
