"""Side-by-side benchmarks: what the engine costs beside a bare client loop, Kafka's own tools and the raw limit.

`make bench` runs them all. The broker is a plain process of this machine, each side is a process of its own, and
nothing is judged here: figures are printed, and kept under `results/`.
"""
