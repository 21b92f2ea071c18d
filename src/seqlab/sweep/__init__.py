"""Sweeps: which folder, what its jobs did, the display, and jobs that leave no trace in the next one.

What a job did is told through files alone, so that it may run in this process, in another or on another machine.
"""
