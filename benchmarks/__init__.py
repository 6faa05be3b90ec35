"""Speed next to named alternatives and measured floors. Each file runs alone: python -m benchmarks.<name>."""
