// What the build measured of the engine that each model runs: mAP clean and under attack, and times under a flood.

import { cell, element, fraction, heading, milliseconds } from "./text.js";

// The row of the bundle's metrics that is of a model's own runtime and precision; of two int8 files that for CPUs.
export function engineOf(model) {
  const rows = (model.metrics?.engines ?? []).filter((one) => one.runtime === model.runtime && one.precision === model.precision);
  return rows.find((one) => one.target === "cpu") ?? rows[0];
}

// A figure of fewer images than the clean one stands within a block of its own, which says of how many.
function within(engine, key, block) {
  if (Number.isFinite(engine[key])) return fraction(engine[key]);
  const found = engine[block]?.[key];
  return Number.isFinite(found) ? `${fraction(found)} (${engine[block].images} images)` : "–";
}

function lowest(engine) {
  const found = engine.lowest;
  if (!Number.isFinite(found?.map)) return "–";
  return `${fraction(found.map)} by ${found.attack.replaceAll("_", " ")} (${found.images} images)`;
}

function flooded(engine) {
  const row = engine.flood?.flooded?.[engine.flood.worst];
  return row ? `${milliseconds(row.p99)}, ${row.ratio.toFixed(2)} × by ${engine.flood.worst}` : "–";
}

// Heading, and what a cell says. The first two are in the list of models as well, of the network in PyTorch.
const COLUMNS = [
  ["mAP", (engine) => fraction(engine.map_clean)],
  ["PGD, transfer", (engine) => fraction(engine.map_pgd_transfer)],
  ["PGD, adaptive", (engine) => within(engine, "map_pgd_adaptive", "adaptive")],
  ["Square", (engine) => within(engine, "map_square", "square")],
  ["Lowest", lowest],
  ["mPC", (engine) => within(engine, "mpc", "corruptions")],
  ["p99 of the network, ms", (engine) => milliseconds(engine.latency_ms?.p99)],
  ["p99 to detections, ms", (engine) => milliseconds(engine.flood?.clean?.p99)],
  ["p99 flooded, ms", flooded],
];
const ASKED_FOR = ["PGD, adaptive", "Square", "mPC", "p99 flooded, ms"];

// Fills the section, with the columns that have figures; hides it if builds measured nothing that must be asked for.
export function showEngines(section, models) {
  const rows = models.map((model) => [model, engineOf(model)]).filter(([, engine]) => engine);
  const shown = COLUMNS.filter(([, words]) => rows.some(([, engine]) => words(engine) !== "–"));
  section.hidden = !shown.some(([title]) => ASKED_FOR.includes(title));
  section.querySelector("#engines-head").replaceChildren(
    ...["Model", "Engine"].map((title) => heading(title, "col")),
    ...shown.map(([title]) => Object.assign(heading(title, "col"), { className: "number" })),
  );
  section.querySelector("#engines").replaceChildren(
    ...rows.map(([model, engine]) =>
      element("tr", {}, heading(model.name), cell(`${engine.runtime}, ${engine.precision}`), ...shown.map(([, words]) => cell(words(engine), true))),
    ),
  );
}
