"""The version, alone in a module so that packaging reads it without importing anything else."""

VERSION = "0.1.0"
