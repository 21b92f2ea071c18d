"""Run folders written without training: python scripts/run_trees.py /tmp/many --runs 1000 --steps 10000."""

from seqlab.benchmarks.run_trees import main

if __name__ == "__main__":
    main()
