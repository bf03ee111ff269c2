"""Builds the CLIP-style byte-level tokenizer from our own captions and a few hundred general words.

    python tokenizer.py --work DIR

writes DIR/tokenizer. 1,024 entries: 256 bytes, 256 bytes that end a word, 510 merges, start and end token.
Any text can be written with it, words that never occurred letter by letter.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import re
from pathlib import Path

from transformers import CLIPTokenizer

import scenes
import text
import words

CAPTIONS = 6000
WORD_PATTERN = re.compile(r"[a-z]+|[0-9]|[^\sa-z0-9]+")
START, END = "<|startoftext|>", "<|endoftext|>"


def byte_symbols() -> list[str]:
    """A printable character for each byte, as byte-level tokenizers have it."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        if byte not in symbols:
            symbols[byte] = chr(256 + len(symbols) - len(printable))
    return [symbols[byte] for byte in range(256)]


def count_words() -> collections.Counter[str]:
    """How often each word is to count when merges are chosen."""
    rng = random.Random(1)
    counts: collections.Counter[str] = collections.Counter()
    for _ in range(CAPTIONS):
        counts.update(WORD_PATTERN.findall(scenes.caption(scenes.random_scene(rng), rng)))
    for word in words.ADJECTIVES + " ".join(words.ENDINGS).split():
        counts[word] += 60
    for word in words.OTHERS:
        counts[word] += 4
    for word in scenes.COLOURS + scenes.SHAPES:  # each of these must become one token
        counts[word] += 500
    return counts


def learn(counts: collections.Counter[str], size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Byte pair encoding: joins the commonest pair of neighbours until there are `size` entries."""
    symbols = byte_symbols()
    spelled = {word: [symbols[byte] for byte in word.encode()] for word in counts}
    for parts in spelled.values():
        parts[-1] += "</w>"
    entries = symbols + [symbol + "</w>" for symbol in symbols]
    merges: list[tuple[str, str]] = []
    while len(entries) < size - 2:
        pairs: collections.Counter[tuple[str, str]] = collections.Counter()
        for word, parts in spelled.items():
            for pair in zip(parts, parts[1:]):
                pairs[pair] += counts[word]
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        entries.append("".join(best))
        for parts in spelled.values():
            index = 0
            while index + 1 < len(parts):
                if (parts[index], parts[index + 1]) == best:
                    parts[index : index + 2] = ["".join(best)]
                index += 1
    entries += [START, END]
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    if len(vocabulary) != size:
        raise ValueError("an entry occurs twice")
    return vocabulary, merges


def write(folder: Path, vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> None:
    """Writes tokenizer.json and the older files (vocab.json, merges.txt) that other programs read."""
    folder.mkdir(parents=True, exist_ok=True)
    CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=text.POSITIONS).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, merges)) + "\n")

    def special(content: str) -> dict[str, object]:
        return {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}

    names = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    special_tokens = {**names, "bos_token": special(START), "eos_token": special(END), "unk_token": special(END)}
    configuration = {
        "add_prefix_space": False,
        **names,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": text.POSITIONS,
        "tokenizer_class": "CLIPTokenizer",
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(special_tokens, indent=2))
    (folder / "tokenizer_config.json").write_text(json.dumps(configuration, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="scratch folder")
    arguments = parser.parse_args()
    folder = arguments.work / "tokenizer"
    write(folder, *learn(count_words(), text.VOCABULARY))
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    rng = random.Random(2)
    longest = max(len(tokenizer(scenes.caption(scenes.random_scene(rng), rng)).input_ids) for _ in range(3000))
    print(f"{len(tokenizer)} entries; the longest of 3,000 captions has {longest} tokens of {text.POSITIONS}")


if __name__ == "__main__":
    main()
