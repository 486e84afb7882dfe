"""Serves a bundle: pictures and videos in; faces, scores, verdicts and evidence out. No torch."""

__version__ = "0.1.0"
