"""Benchmarks on real models; see README.md in this folder."""
