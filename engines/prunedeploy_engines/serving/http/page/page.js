// What the page knows, and what happens when somebody does something.

import { above } from "./agreement.js";
import { Camera } from "./camera.js";
import { compare } from "./comparison.js";
import { showEngines } from "./engines.js";
import { takeImages } from "./images.js";
import { listRow } from "./models.js";
import { Pane } from "./pane.js";
import { Refusal, detect, listModels, useToken } from "./requests.js";
import { element, plural } from "./text.js";
import { Times, painted } from "./times.js";

const at = (id) => document.getElementById(id);

const camera = new Camera(at("video"));
const panes = { first: new Pane(), second: new Pane() };
const state = {
  models: [],
  image: null, // { blob, width, height, bitmap }
  answers: new Map(), // model name -> the server's answer for this image
  times: new Map(), // model name -> Times
  live: null, // one object per use of the camera, while it is on
  moved: false, // the slider, by hand
  retry: null,
};
let asking = { stop: new AbortController(), done: Promise.resolve() };

// The models that are looked at: [{ side, model }].
function sides() {
  return ["first", "second"]
    .map((side) => ({ side, model: state.models.find((model) => model.name === at(side).value) }))
    .filter(({ model }) => model);
}

// Colours follow names, so that a class looks the same under two models that number it differently.
function numbering(looked) {
  const names = [...new Set(looked.flatMap(({ model }) => model.class_names ?? []))];
  return (name) => Math.max(0, names.indexOf(name));
}

function say(text) {
  if (at("status").textContent !== text) at("status").textContent = text;
}

// Say what went wrong, and keep what to do again. A screen reader reads it at once.
function report(error, retry) {
  if (!(error instanceof Refusal)) throw error;
  state.retry = retry;
  if (error.status === 401) {
    at("token-title").textContent = error.message;
    at("token-form").hidden = false;
    at("token").value = "";
    at("token").focus();
    say(error.message);
    return;
  }
  const patience = error.retryAfter ? ` It asks you to wait ${plural(error.retryAfter, "second")}.` : "";
  if (at("problem").hidden || at("problem-text").textContent !== error.message + patience) {
    at("problem-text").textContent = error.message + patience;
    at("problem").hidden = false;
  }
}

function forgive() {
  at("problem").hidden = true;
  at("token-form").hidden = true;
}

async function load() {
  say("Asking the server for its models …");
  try {
    state.models = await listModels();
  } catch (error) {
    say("No models known.");
    report(error, load);
    return;
  }
  forgive();
  state.answers.clear(); // a model may have been replaced by another of its name
  state.times.clear();
  const ready = state.models.filter((model) => model.state === "READY");
  at("models").replaceChildren(...state.models.map(listRow));
  showEngines(at("attacked"), ready);
  const [chosen, other] = [at("first").value, at("second").value];
  at("first").replaceChildren(...ready.map(({ name }) => new Option(name)));
  if (ready.some(({ name }) => name === chosen)) at("first").value = chosen;
  // Two models are there to be compared, so that is where the page begins.
  offerSecond(chosen ? other : (ready[1]?.name ?? ""));
  at("second").disabled = ready.length < 2;
  at("choose").disabled = at("camera").disabled = !ready.length;
  if (!ready.length) stopCamera();
  say(ready.length ? `Ready: ${plural(ready.length, "model")}.` : "The server has no model that is ready.");
  chooseModels();
}

function offerSecond(wanted) {
  const names = [...at("first").options].map(({ value }) => value).filter((name) => name !== at("first").value);
  at("second").replaceChildren(new Option("nothing", ""), ...names.map((name) => new Option(name)));
  at("second").value = names.includes(wanted) ? wanted : "";
}

function chooseModels() {
  const looked = sides();
  at("panes").replaceChildren(...looked.map(({ side }) => panes[side].root));
  for (const { side, model } of looked) {
    panes[side].name(model);
    panes[side].clear(state.image ? "" : "The picture with its boxes will appear here.");
  }
  if (!state.moved && looked.length) setThreshold(looked[0].model.thresholds?.score ?? 0.5);
  show();
  if (state.image && !state.live) ask();
}

function setThreshold(value) {
  at("threshold").value = value;
  at("threshold-value").textContent = Number(at("threshold").value).toFixed(2);
}

// Draw what is known. Needs no request: the server was asked down to the lowest score.
function show() {
  const threshold = Number(at("threshold").value);
  const looked = sides();
  const indexOf = numbering(looked);
  const known = looked.map(({ side, model }) => {
    const answer = state.answers.get(model.name);
    if (!answer) return null;
    const shown = above(answer.detections, threshold);
    panes[side].show(state.image, answer, shown, indexOf);
    return { side, model, shown, times: state.times.get(model.name) };
  });
  const answered = known.filter(Boolean);
  const longest = Math.max(...answered.map(({ times }) => times.roundTrip()));
  for (const { side, times } of answered) panes[side].showTimes(times, longest);
  compare(at("comparison"), known[0], known[1]);
  return answered;
}

// Ask every model that has not answered for this image yet, one after the other: together they would slow each other.
async function ask() {
  asking.stop.abort();
  if (!sides().length) return null;
  if (!state.live) say("Looking …");
  const before = asking.done;
  const stop = new AbortController();
  const work = before.then(() => askEach(stop.signal));
  asking = { stop, done: work.catch(() => {}) };
  return work;
}

async function askEach(signal) {
  let failure = null;
  for (const { side, model } of sides()) {
    if (signal.aborted || state.answers.has(model.name)) continue;
    panes[side].busy();
    try {
      if (!state.live) await painted();
      if (signal.aborted) return null;
      const answer = await detect(model.name, state.image, signal);
      if (signal.aborted) return null;
      state.answers.set(model.name, answer);
      if (!state.times.has(model.name)) state.times.set(model.name, new Times());
      state.times.get(model.name).add(answer.times, answer.roundTrip);
    } catch (error) {
      if (signal.aborted) return null;
      failure = error;
      panes[side].clear("No answer for this image.");
      if (error.status === 401 || error.status === 0) break;
    }
    if (!state.live) show();
  }
  if (signal.aborted) return null;
  at("again").disabled = Boolean(state.live);
  const answered = show();
  if (failure) {
    report(failure, failure.status === 404 ? load : again);
    if (failure.status !== 401) say("The server has not answered for this image.");
    return failure;
  }
  forgive();
  if (!state.live) announce(answered);
  return null;
}

function announce(answered) {
  say(answered.map(({ model, shown }) => `${model.name} finds ${plural(shown.length, "object")}`).join(", ") + ".");
}

function again() {
  state.answers.clear();
  return ask();
}

async function look(file) {
  if (!sides().length) return say("There is no model to look at the image with.");
  stopCamera();
  say("Looking …");
  let bitmap;
  try {
    // Upright, as the server reads it.
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    say("No new image.");
    report(new Refusal(`${file.name || "This file"} is not an image that this browser can show: choose a JPEG, PNG or WebP.`), () => at("file").click());
    return;
  }
  state.image = { blob: file, width: bitmap.width, height: bitmap.height, bitmap };
  state.answers.clear();
  state.times.clear();
  at("source").textContent = `${file.name || "Pasted image"}, ${bitmap.width} × ${bitmap.height} pixels.`;
  await ask();
}

async function useCamera() {
  if (state.live) return stopCamera();
  asking.stop.abort();
  at("camera").disabled = true;
  try {
    await camera.open();
  } catch (error) {
    return report(error, useCamera);
  } finally {
    at("camera").disabled = false;
  }
  forgive();
  state.live = {};
  state.times.clear();
  at("camera").textContent = "Stop the camera";
  at("camera").setAttribute("aria-pressed", "true");
  at("again").disabled = true;
  at("source").textContent = "Live: each picture is sent when the one before has been answered.";
  say("The camera is on.");
  await follow(state.live);
}

async function follow(use) {
  const arrivals = [];
  let said = performance.now();
  while (state.live === use) {
    await painted();
    const image = state.live === use ? await camera.frame() : null;
    if (!image || state.live !== use) break;
    state.image = image;
    state.answers.clear();
    const failure = await ask();
    // A busy server is a moment; anything else will not go away by sending more.
    if (failure && failure.status !== 503) break;
    if (failure) await new Promise((resolve) => setTimeout(resolve, 1000 * Math.max(1, failure.retryAfter)));
    arrivals.push(performance.now());
    if (arrivals.length > 20) arrivals.shift();
    if (!failure && arrivals.at(-1) - said > 5000) {
      said = arrivals.at(-1); // not each picture's: nobody can listen that fast
      announce(show());
    }
    const span = (arrivals.at(-1) - arrivals[0]) / 1000;
    at("rate").textContent = span > 0 ? `${((arrivals.length - 1) / span).toFixed(1)} pictures a second` : "";
  }
  if (state.live === use) stopCamera();
}

function stopCamera() {
  if (!state.live) return;
  state.live = null;
  camera.close();
  at("camera").textContent = "Use the camera";
  at("camera").setAttribute("aria-pressed", "false");
  at("again").disabled = !state.image;
  at("rate").textContent = "";
  at("source").textContent = "The camera's last picture.";
  say("The camera is off.");
}

takeImages(look, say);
at("camera").addEventListener("click", useCamera);
at("again").addEventListener("click", again);
at("reload").addEventListener("click", load);
at("retry").addEventListener("click", () => state.retry?.());
at("first").addEventListener("change", () => {
  offerSecond(at("second").value);
  chooseModels();
});
at("second").addEventListener("change", chooseModels);
at("threshold").addEventListener("input", () => {
  state.moved = true;
  setThreshold(at("threshold").value);
  show();
});
// Said when the slider has come to rest, not at each of its steps.
at("threshold").addEventListener("change", () => state.image && announce(show()));
at("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useToken(at("token").value);
  at("token").value = "";
  forgive();
  (state.retry ?? load)();
});

load();
