"""The whole chain on a CPU, offline: a small world, its tiny models, and the stages that `trl-ext demo` runs."""
