"""The paper's claims, tested by training. registry.py explains how a claim is defined, run and judged."""
