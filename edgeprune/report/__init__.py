"""Show results: plain text tables for the console, one self-contained HTML file for everything else.

Owns how numbers and verdicts look. Works on the dict form of results only; runs nothing and imports no torch.
"""

from __future__ import annotations

from edgeprune.report.html import render, render_sensitivity, write_report

__all__ = ["render", "render_sensitivity", "write_report"]
