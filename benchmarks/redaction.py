"""How well redaction tells what must go from what must stay, and what it costs. Prints a table.

python benchmarks/redaction.py
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from harness.redaction_corpus import EVERYTHING, conversation, corpus, score
from siprec_bridge.redaction.conversation import redact_conversation

_LINES = (
    "1: I would like to change the delivery of my order, it is the one from last Tuesday.",
    "2: Of course, may I have the number of the order, please, and your name as well?",
    "1: It is one four seven two nine, and the name is Smith, as always, thank you so much.",
)


def main() -> None:
    """Measure and print."""
    print("| kind | in the corpus | found | recall | wrong | precision |")
    print("|---|---|---|---|---|---|")
    for kind, there, found, wrong in score():
        precision = found / (found + wrong) if found + wrong else 1.0
        recall = found / there if there else 1.0
        print(f"| {kind} | {there} | {found} | {recall:.1%} | {wrong} | {precision:.1%} |")
    quiet = sum(not one.kinds for one in corpus())
    print(f"{len(corpus())} conversations, {quiet} of them with nothing to take out")
    hour = conversation(_LINES * 170)
    redact_conversation(hour, EVERYTHING)
    begun = time.process_time()
    redact_conversation(hour, EVERYTHING)
    words = sum(len(one.words) for one in hour.utterances)
    spent = time.process_time() - begun
    print(f"an hour of talk ({words} words): {spent:.2f} s of CPU")


if __name__ == "__main__":
    main()
