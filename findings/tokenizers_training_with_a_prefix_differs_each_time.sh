#!/usr/bin/env bash
# tokenizers 0.23.3: training a WordPiece tokenizer, or BPE with a continuing_subword_prefix, on the same text gives other
# token ids each time. Plain BPE gives the same ones.
#
# One thread does not help. So a tokenizer that is trained again, from the same files with the same settings, does not fit
# a checkpoint trained with the first: the ids that its embedding knows belong to other pieces now. The file that the
# training wrote is what has to be kept.
#
# Seen on 2026-11-30, Python 3.11, five trainings each, in one process, of one thread:
#   BPE: the same each time; BPE with ## and WordPiece: not the same each time
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

python3 -m venv venv
venv/bin/pip install -q --no-compile tokenizers==0.23.3
cat > train.py <<'PYTHON'
import random

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

random.seed(0)
syllables = [a + b for a in "bdfglmnprstv" for b in ("a", "e", "i", "o", "u", "an", "er")]
words = ["".join(random.choices(syllables, k=random.randint(1, 4))) for _ in range(2000)]
lines = [" ".join(random.choices(words, k=12)) for _ in range(500)]

kinds = {
    "BPE": (models.BPE, trainers.BpeTrainer, {}),
    "BPE with ##": (models.BPE, trainers.BpeTrainer, {"continuing_subword_prefix": "##"}),
    "WordPiece": (models.WordPiece, trainers.WordPieceTrainer, {}),
}
for name, (model, trainer, settings) in kinds.items():
    found = set()
    for _ in range(5):
        tokenizer = Tokenizer(model(unk_token="?"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        teacher = trainer(vocab_size=300, special_tokens=["?"], show_progress=False, **settings)
        tokenizer.train_from_iterator(lines, teacher)
        found.add(tuple(sorted(tokenizer.get_vocab().items())))
    print(f"{name}: {'the same each time' if len(found) == 1 else 'not the same each time'}")
PYTHON
RAYON_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false venv/bin/python train.py | tee out.txt
diff out.txt - <<'EXPECTED'
BPE: the same each time
BPE with ##: not the same each time
WordPiece: not the same each time
EXPECTED
echo "as described"
