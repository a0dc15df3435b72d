// What is known about a model, in words.

import { bytes, cell, element, fraction, heading, plural, short } from "./text.js";

export function percent(ratio) {
  return `${Number((100 * ratio).toFixed(1))} %`;
}

// "pruned 75 %", "not pruned", or nothing where there is no record.
export function badge(model) {
  if (!model.pruning) return "no pruning record";
  return model.pruning.ratio_achieved > 0 ? `pruned ${percent(model.pruning.ratio_achieved)}` : "not pruned";
}

export function pruningInWords(model) {
  const record = model.pruning;
  if (record === undefined) return "–"; // not loaded, so nothing is known of it
  if (record === null) return "no record";
  if (!(record.ratio_achieved > 0)) return "not pruned";
  const asked = Math.abs(record.ratio_requested - record.ratio_achieved) >= 0.001 ? ` of ${percent(record.ratio_requested)} asked for` : "";
  return [`${percent(record.ratio_achieved)}${asked}`, record.method, record.scores].filter(Boolean).join(", ");
}

export function listRow(model) {
  const state = model.state === "READY" ? "ready" : `${model.state.toLowerCase()}${model.reason ? `: ${model.reason}` : ""}`;
  const [height, width] = model.input_size ?? [];
  return element(
    "tr",
    {},
    heading(model.version ? `${model.name} (version ${model.version})` : model.name),
    cell(state),
    cell(pruningInWords(model)),
    cell(short(model.metrics?.params), true),
    cell(bytes(model.bytes), true),
    cell([model.runtime, model.precision].filter(Boolean).join(", ")),
    cell(width ? `${width} × ${height}` : "–"),
    cell(model.class_names ? plural(model.class_names.length, "class").replace("classs", "classes") : "–"),
    cell(fraction(model.metrics?.map_clean), true),
    cell(fraction(model.metrics?.map_pgd), true),
  );
}
