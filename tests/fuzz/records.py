"""People's own data: JSON, JSON lines and tables, as training, evaluation and batches read them."""

from pathlib import Path
from typing import Any

from hypothesis import strategies as st

import parity
from fuzzing import Finding, attempt, changed, damaged, json_bytes, outcome, texts, values
from transformers_lladav.data import Examples, read_examples
from transformers_lladav.eval_tasks import FileQuestions, ReadOptions
from transformers_lladav.record_files import DataError, RecordError, iterate_records, load_records

PICTURE = "a5_tiny_gray.png"
CHAT = {
    "id": "one",
    "messages": [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "A star."},
    ],
    "images": [PICTURE],
    "answers": ["a star", "star"],
    "choices": ["A star.", "a square"],
    "metric": "choice",
    "kind": "shape",
    "mark": "Answer:",
}
LLAVA = {
    "id": 7,
    "image": PICTURE,
    "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A star."}],
}
ROW = {"image": PICTURE, "question": "What?", "answer": "A star.", "choices": '["A star.", "no"]'}
documents = changed(CHAT) | changed(LLAVA) | changed(ROW) | values
TABLES = (
    b'image,question,answer\na5_tiny_gray.png,What?,A star.\n,"two\nlines",yes\n',
    b"\xef\xbb\xbfimage;answer\r\na5_tiny_gray.png;A star.\r\n",
    b"question\tanswer\nWhat?\tA star.\n",
)
rows = st.lists(st.lists(texts, max_size=4), max_size=3).map(
    lambda rows: ("question,answer\n" + "\n".join(",".join(row) for row in rows)).encode("utf-8", "surrogatepass")
)
lines = st.lists(json_bytes(documents), min_size=1, max_size=3).map(b"\n".join)
long = st.integers(10_000, 300_000).map(lambda size: b'{"question": "' + b"a" * size + b'", "answer": "b"}')
deep = st.integers(500, 100_000).map(lambda size: b'{"answer": ' + b"[" * size + b"]" * size + b"}")
STRATEGY = st.tuples(
    st.sampled_from(("a.json", "a.jsonl", "a.csv", "a.tsv", "a")),
    lines
    | json_bytes(st.lists(documents, max_size=3))
    | damaged(TABLES)
    | rows
    | long
    | deep
    | st.binary(max_size=60),
)


def check(case: Any, place: Path) -> str:
    """Read it in every way there is; errors name the file, and all ways agree."""
    name, content = case
    file = place / name
    file.write_bytes(content)
    bad: list[RecordError] = []
    options = {"image_folder": parity.FOLDER / "images"}
    read = attempt(lambda: list(read_examples(file, on_bad=bad.append, **options)), refusals=DataError)
    for error in [*bad, *([read] if isinstance(read, Exception) else [])]:
        if name not in str(error):
            raise Finding(f"the file is not named: {error}")
        attempt(lambda error=error: str(error).encode("utf-8", "backslashreplace"))
    examples = attempt(Examples, file, skip_bad=True, **options, refusals=DataError)
    if not isinstance(read, Exception) and read:
        again = [] if isinstance(examples, Exception) else list(examples)
        if [example.messages for example in again] != [example.messages for example in read]:
            raise Finding(f"access by number differs from streaming: {examples}")
    loaded = attempt(load_records, file, refusals=DataError)
    streamed = attempt(lambda: list(iterate_records(file)), refusals=DataError)
    if not isinstance(loaded, Exception) and not isinstance(streamed, Exception) and len(loaded) != len(streamed):
        raise Finding(f"{len(loaded)} records, streamed {len(streamed)}")
    questions = attempt(FileQuestions, file, ReadOptions(**options), refusals=DataError)
    for index in range(0 if isinstance(questions, Exception) else len(questions)):
        question = attempt(questions.__getitem__, index, refusals=RecordError)
        if not isinstance(question, Exception) and not 0 <= attempt(question.rate, "A star.") <= 1:
            raise Finding("a score out of range")
    return outcome(ValueError() if bad or isinstance(read, Exception) else read)
