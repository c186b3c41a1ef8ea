"""What trainers share: adapters, checkpoints and run records, config checks, reductions over real tokens, passes without
a gradient, files of rows, files that are complete or absent, and what differs between versions of TRL. Nothing here knows
a method."""
