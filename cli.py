#!/usr/bin/env python3
"""Runs the imsync command line from a checkout, with the checkout's own config.toml."""

from __future__ import annotations

from pathlib import Path

from imsync.cli import main

if __name__ == "__main__":
    main(default_config=Path(__file__).resolve().parent / "config.toml")
