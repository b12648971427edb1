"""Tests of gradreg_fast; the tree mirrors the package's."""
