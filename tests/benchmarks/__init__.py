"""The parts of benchmarks/: `counting` against counts by hand, `timing` on simulated devices."""
