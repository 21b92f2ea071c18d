"""Sweeps: their folders, the state of their jobs, the display, and hyper-parameter search.

Jobs communicate through files alone, so that they may run in this process, in another or on another machine.
"""
