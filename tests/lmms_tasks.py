"""Tasks for lmms-eval that need no network: questions of the suite in a folder, with pictures and frames as files."""

import json

from transformers_lladav.media import media_parts
from transformers_lladav.suite import evaluation_set

# Functions of a task, as lmms-eval wants them: in a file beside its YAML.
FUNCTIONS = """
from PIL import Image

def visuals(doc):
    return [*[Image.open(path) for path in doc["pictures"]], *([doc["frames"]] if doc["frames"] else [])]

def rate(doc, results):
    return {"right": float(results[0] == doc["answer"])}
"""
TASK = """
dataset_path: json
dataset_kwargs: {data_files: {test: DOCS}}
task: NAME
test_split: test
output_type: OUTPUT
doc_to_visual: !function utils.visuals
doc_to_text: question
doc_to_target: answer
"""
RATED = """
process_results: !function utils.rate
metric_list: [{metric: right, aggregation: mean, higher_is_better: true}]
"""
# What most tasks of lmms-eval say: greedy, by every way of saying it, up to a length that is no multiple of a block.
KWARGS = """
generation_kwargs: {until: ["\\n"], max_new_tokens: 20, temperature: 0, top_p: 1.0, num_beams: 1, do_sample: false}
"""
SETTINGS = {"max_new_tokens": 24, "stop_strings": ["\n"]}  # what these come to with blocks of 8
KINDS = ("colour", "change", "caption", "ocr", "count")


def write_docs(folder, count):
    """Questions about one picture or two, one without any, and one about the frames of a video.

    Returns:
        The chats, as the processor takes them, and the answers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    docs, chats, answers = [], [], []
    for number, example in enumerate(evaluation_set("test", count, KINDS)):
        pictures, question = media_parts(example.messages, "image"), example.messages[-1]["content"][-1]["text"]
        paths = [str(folder / f"{number}-{index}.png") for index in range(len(pictures))]
        for path, picture in zip(paths, pictures, strict=True):
            picture.save(path)
        docs.append({"question": question, "answer": example.answer, "pictures": paths, "frames": ""})
        parts = [{"type": "image", "image": path} for path in paths]
        chats.append([{"role": "user", "content": [*parts, {"type": "text", "text": question}]}])
        answers.append(example.answer)
    frames = folder / "frames"
    frames.mkdir()
    for index in range(3):
        pictures[0].save(frames / f"{index}.png")
    docs += [
        {"question": "How many shapes are there?", "answer": "two", "pictures": [], "frames": ""},
        {"question": "How many shapes are there?", "answer": "two", "pictures": [], "frames": str(frames)},
    ]
    text = {"type": "text", "text": "How many shapes are there?"}
    video = {"type": "video", "video": [str(frames / f"{index}.png") for index in range(3)]}
    chats += [[{"role": "user", "content": [text]}], [{"role": "user", "content": [video, text]}]]
    (folder / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (folder / "utils.py").write_text(FUNCTIONS)
    return chats, [*answers, "two", "two"]


def write_task(folder, name, more, output="generate_until"):
    """A task over these questions."""
    text = TASK.replace("DOCS", str(folder / "docs.jsonl")).replace("NAME", name).replace("OUTPUT", output)
    (folder / f"{name}.yaml").write_text(text + more)
