"""Benchmarks: layer lists (shapefile), timing (harness), convolutions (layers), networks (models), tables (report).

Run by `convkern bench`; docs/benchmarks.md says how the figures are taken. Nothing of this is imported by the rest of
the package.
"""
