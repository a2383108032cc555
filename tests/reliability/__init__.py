"""What holds when something breaks: runs are killed, files damaged, recipes mutated; `python -m benchmarks.reliability`."""
