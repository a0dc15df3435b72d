// Two models, figure by figure.

import { inBoth } from "./agreement.js";
import { bytes, cell, element, fraction, heading, milliseconds, plural, short } from "./text.js";

const MINUS = "\u2212";

// Each side: { model, shown (detections), times }. Fills the section of that name; null for a side hides it.
export function compare(section, first, second) {
  section.hidden = !first || !second;
  if (section.hidden) return;
  const head = ["", first.model.name, second.model.name, `${second.model.name} against ${first.model.name}`];
  section.querySelector("#comparison-head").replaceChildren(
    ...head.map((text, column) => (text ? Object.assign(heading(text, "col"), { className: column ? "number" : "" }) : cell(""))),
  );
  section.querySelector("#agreement").textContent = agreement(first, second);
  const count = Math.min(first.times.count, second.times.count);
  const rows = [
    ["Parameters", first.model.metrics?.params, second.model.metrics?.params, short, factor("fewer", "more")],
    ["Multiply-accumulates", first.model.metrics?.macs, second.model.metrics?.macs, short, factor("fewer", "more")],
    ["File", first.model.bytes, second.model.bytes, bytes, factor("smaller", "larger")],
    ["Run the network, ms", first.times.stage("compute"), second.times.stage("compute"), milliseconds, factor("faster", "slower")],
    // Not the round trip: between two browsers' moods the models' difference is lost.
    ["In the server, ms", first.times.server(), second.times.server(), milliseconds, factor("faster", "slower")],
    ["Detections", first.shown.length, second.shown.length, String, signed(0)],
    ["mAP, measured by the build", first.model.metrics?.map_clean, second.model.metrics?.map_clean, fraction, signed(3)],
    ["Robust mAP, measured by the build", first.model.metrics?.map_pgd, second.model.metrics?.map_pgd, fraction, signed(3)],
  ];
  section.querySelector("#comparison-rows").replaceChildren(
    ...rows.filter(([, a, b]) => Number.isFinite(a) || Number.isFinite(b)).map(([name, a, b, show, relate]) =>
      element("tr", {}, heading(name), cell(show(a), true), cell(show(b), true), cell(Number.isFinite(a) && Number.isFinite(b) ? relate(a, b) : "–", true)),
    ),
  );
  section.querySelector("#samples").textContent =
    count > 1 ? `Times are medians of ${count} requests.` : "Times are those of one request: ask again for a median.";
}

export function agreement(first, second) {
  const both = inBoth(first.shown, second.shown);
  const [a, b] = [first.shown.length - both, second.shown.length - both];
  const only = [];
  if (a) only.push(`${a} only by ${first.model.name}`);
  if (b) only.push(`${b} only by ${second.model.name}`);
  return `${plural(both, "object")} found by both${only.length ? `, ${only.join(", ")}` : ""}.`;
}

function factor(less, more) {
  return (a, b) => {
    if (!(a > 0) || !(b > 0)) return "–";
    const ratio = a >= b ? a / b : b / a;
    return ratio < 1.005 ? "the same" : `${ratio.toFixed(ratio < 10 ? 2 : 1)} × ${a > b ? less : more}`;
  };
}

function signed(digits) {
  return (a, b) => {
    const text = Math.abs(b - a).toFixed(digits);
    return Number(text) === 0 ? "the same" : `${b < a ? MINUS : "+"}${text}`;
  };
}
