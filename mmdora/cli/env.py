"""`mmdora env`."""

from __future__ import annotations

from mmdora.cli.app import app


@app.command(sort_key=8)
def env() -> None:
    """Print versions and devices, for bug reports."""
    from mmdora.env import collect

    for name, value in collect().items():
        print(f"{name:<14} {value}")
