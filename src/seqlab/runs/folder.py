"""The files of a run folder and of a sweep's."""

CONFIG = "config.yaml"
SWEEP = "sweep.json"
TOKENIZER = "tokenizer.json"
