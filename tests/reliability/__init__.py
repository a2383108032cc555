"""What holds when something breaks: runs are killed, files damaged, recipes mutated; see benchmarks/reliability.py."""
