"""The version of the program, written down in this one place; the build reads it too."""

__version__ = "1.0.0"
