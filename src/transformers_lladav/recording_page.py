"""The page of a recording: one HTML file that loads nothing, with everything about the answer in it as JSON.

The content security policy names the hashes of the one style and the one script, so that nothing else can run.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any

# JSON stays JSON with these escapes, and cannot end its element or start a comment.
NOT_IN_HTML = {ord(character): f"\\u{ord(character):04x}" for character in "<>&"}


def page(content: Mapping[str, Any]) -> str:
    """Fill the page.

    Args:
        content: title, question, answer, settings (name to text), picture (a data URI), steps, and cells with text,
            written (a step, 0 if given, None if never) and confidence (a number or None).

    Returns:
        The HTML; texts are in its JSON only, escaped to ASCII.
    """
    data = json.dumps(content, allow_nan=False).translate(NOT_IN_HTML)
    style, script = (f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'" for part in PARTS)
    policy = f"default-src 'none'; img-src data:; style-src {style}; script-src {script}; base-uri 'none'"
    page = PAGE.replace("{policy}", policy).replace("{style}", STYLE).replace("{script}", SCRIPT)
    return page.replace("{data}", data)


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>An answer out of masks</title>
<style>{style}</style>
</head>
<body>
<main>
<h1 id="title"></h1>
<noscript><p>This page needs JavaScript to show the recording. It loads nothing from anywhere.</p></noscript>
<div class="stage">
<figure><img id="picture" alt="The picture that the question is about"></figure>
<section aria-label="Question and answer">
<p id="question" dir="auto"></p>
<div id="answer" dir="auto" aria-hidden="true"></div>
<p id="spoken" class="unseen" aria-live="polite"></p>
<div class="controls" role="group" aria-label="Playback">
<input id="step" type="range" min="0" value="0" step="1" aria-label="Step">
<button id="back" type="button" aria-label="Step back" title="Step back (left arrow)">&#9664;</button>
<button id="play" type="button" title="Play or pause (space)">Play</button>
<button id="forward" type="button" aria-label="Step forward" title="Step forward (right arrow)">&#9654;</button>
<span id="count" aria-hidden="true"></span>
<label>Speed <select id="speed" aria-label="Speed">
<option value="0.5">0.5&times;</option><option value="1" selected>1&times;</option>
<option value="2">2&times;</option><option value="4">4&times;</option>
</select></label>
</div>
<p class="legend"><span>Confidence when written:</span> <span id="low"></span>
<span class="ramp" aria-hidden="true"></span> <span id="high"></span></p>
<dl id="settings"></dl>
</section>
</div>
</main>
<script type="application/json" id="recording">{data}</script>
<script>{script}</script>
</body>
</html>
"""

STYLE = """
:root { color-scheme: light dark; --paper: #fbfbf9; --ink: #1c1e22; --muted: #63676f; --rule: #d9dbe0;
  --mask: #dfe2e8; --unsure: #ffc27a; --sure: #d3ebff; --fresh: #12803c; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16181c; --ink: #eceef2; --muted: #a0a5ae; --rule: #3a3e46;
    --mask: #343841; --unsure: #8a4b00; --sure: #14395c; --fresh: #5ad38a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 1.5rem 1.25rem 3rem; }
h1 { font-size: 1.15rem; font-weight: 600; margin: 0 0 1.25rem; overflow-wrap: anywhere; }
.stage { display: grid; grid-template-columns: minmax(0, 2fr) minmax(0, 3fr); gap: 2rem; align-items: start; }
figure { margin: 0; }
img { display: block; max-width: 100%; max-height: 80vh; margin: 0 auto; border-radius: 6px;
  box-shadow: 0 0 0 1px var(--rule); }
#question { margin: 0 0 .75rem; color: var(--muted); white-space: pre-wrap; overflow-wrap: anywhere; }
#answer { font-size: 1.35rem; line-height: 1.75; margin-bottom: 1.5rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
#answer span { border-radius: 4px; padding: .1em 0; box-decoration-break: clone; -webkit-box-decoration-break: clone;
  transition: background-color .25s, color .25s; }
#answer .masked { background: var(--mask); color: transparent; box-shadow: inset 0 0 0 1px var(--paper);
  user-select: none; }
#answer .rated { background: color-mix(in oklab, var(--sure) calc(100% * var(--share)), var(--unsure)); }
#answer .fresh { outline: 2px solid var(--fresh); outline-offset: -1px; }
.controls { display: flex; flex-wrap: wrap; align-items: center; gap: .5rem; }
.controls input { flex: 1 0 100%; height: 2rem; margin: 0; accent-color: var(--fresh); }
button, select { font: inherit; color: inherit; background: transparent; border: 1px solid var(--rule);
  border-radius: 6px; min-height: 2.75rem; min-width: 2.75rem; padding: 0 .6rem; }
select option { background: var(--paper); }
#play { min-width: 5.5rem; }
:is(button, select, input):focus-visible { outline: 2px solid var(--fresh); outline-offset: 2px; }
#count { color: var(--muted); font-variant-numeric: tabular-nums; margin-left: .25rem; }
label { margin-left: auto; color: var(--muted); }
.legend { display: flex; flex-wrap: wrap; align-items: center; gap: .25rem .5rem; color: var(--muted);
  font-size: .875rem; margin: 1rem 0; }
.ramp { width: 6rem; height: .8rem; border-radius: 4px; border: 1px solid var(--rule);
  background: linear-gradient(to right, var(--unsure), var(--sure)); }
dl { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; margin: 0; font-size: .875rem; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }
.unseen { position: absolute; width: 1px; height: 1px; margin: -1px; overflow: hidden; clip-path: inset(50%);
  white-space: nowrap; }
@media (max-width: 44rem) { .stage { grid-template-columns: minmax(0, 1fr); gap: 1.25rem; }
  main { padding: 1rem; } img { max-height: 45vh; } }
@media (prefers-reduced-motion: reduce) { #answer span { transition: none; } }
"""

SCRIPT = """
"use strict";
const find = (id) => document.getElementById(id);
const recording = JSON.parse(find("recording").textContent);
const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
const STEP_MILLISECONDS = 450;
let step = 0, timer = null;

// Confidences are shares, but a measure such as entropy has a scale of its own.
const known = recording.cells.map((cell) => cell.confidence).filter((value) => value !== null);
const shares = known.every((value) => value >= 0 && value <= 1);
const low = shares ? 0 : Math.min(...known), high = shares ? 1 : Math.max(...known);

const cells = recording.cells.map((cell) => {
  const [, space, text] = cell.text.match(/^(\\s*)([^]*)$/);
  find("answer").append(space);
  const span = document.createElement("span");
  span.textContent = text;
  if (text) find("answer").append(span);
  if (cell.confidence !== null) {
    span.style.setProperty("--share", high > low ? (cell.confidence - low) / (high - low) : 1);
  }
  return { ...cell, span };
});

const isMasked = (cell) => cell.written === null || step < cell.written;

function show(next) {
  step = Math.max(0, Math.min(recording.steps, next));
  for (const cell of cells) {
    const masked = isMasked(cell);
    cell.span.classList.toggle("masked", masked);
    cell.span.classList.toggle("fresh", cell.written === step && step > 0);
    cell.span.classList.toggle("rated", !masked && cell.confidence !== null);
    cell.span.title = masked ? "not written yet"
      : cell.written === 0 ? "given"
      : "step " + cell.written + (cell.confidence === null ? "" : ", confidence " + cell.confidence.toFixed(3));
  }
  find("step").value = step;
  find("step").setAttribute("aria-valuetext", "step " + step + " of " + recording.steps);
  find("count").textContent = "step " + step + " / " + recording.steps;
  if (timer === null) speak();
}

function speak() {
  const text = cells.map((cell) => isMasked(cell) ? " \\u2026" : cell.text).join("");
  find("spoken").textContent = "Step " + step + " of " + recording.steps + ": " + text;
}

function advance() {
  timer = null;
  if (step + 1 < recording.steps) schedule();
  else find("play").textContent = "Replay";
  show(step + 1);
}

function schedule() {
  timer = setTimeout(advance, STEP_MILLISECONDS / Number(find("speed").value));
}

function pause() {
  clearTimeout(timer);
  timer = null;
  find("play").textContent = step === recording.steps ? "Replay" : "Play";
}

function toggle() {
  if (timer !== null) {
    pause();
    speak();
    return;
  }
  find("play").textContent = "Pause";
  schedule();
  if (step === recording.steps) show(0);
}

function go(next) {
  pause();
  show(next);
  pause();
}

document.addEventListener("keydown", (event) => {
  const own = event.target.closest("input, select");
  if (own || event.ctrlKey || event.metaKey || event.altKey) return;
  const moves = { ArrowLeft: step - 1, ArrowRight: step + 1, Home: 0, End: recording.steps };
  if (event.key in moves) go(moves[event.key]);
  else if (event.key === " " && !event.target.closest("button")) toggle();
  else return;
  event.preventDefault();
});
find("play").addEventListener("click", toggle);
find("back").addEventListener("click", () => go(step - 1));
find("forward").addEventListener("click", () => go(step + 1));
find("step").addEventListener("input", () => go(Number(find("step").value)));

document.title = recording.title;
find("title").textContent = recording.title;
find("question").textContent = recording.question;
find("picture").src = recording.picture;
find("step").max = recording.steps;
find("low").textContent = shares ? "low" : low.toFixed(2);
find("high").textContent = shares ? "high" : high.toFixed(2);
for (const [name, value] of Object.entries(recording.settings)) {
  const entry = document.createElement("div");
  const term = document.createElement("dt"), figure = document.createElement("dd");
  term.textContent = name;
  figure.textContent = value;
  entry.append(term, figure);
  find("settings").append(entry);
}
if (still) go(recording.steps);
else {
  show(0);
  toggle();
}
"""

PARTS = (STYLE, SCRIPT)
