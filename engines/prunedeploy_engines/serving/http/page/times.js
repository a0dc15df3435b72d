// How long the stages of a request took.

import { median } from "./text.js";

const KEPT = 30; // requests that a median is taken over

// Keys of the server's times_ms, in the order in which they happen, and their names.
export const STAGES = {
  decode: "Decode the image",
  preprocess: "Letterbox",
  queue: "Wait for a batch",
  compute: "Run the network",
  postprocess: "Suppress and scale",
  encode: "Write the answer",
};
export const REST = "Network and browser";
export const ROUND_TRIP = "Round trip";

// When what was changed is on the screen: drawing it must not count as the next request's latency. While the page is
// hidden nothing is drawn, so nothing is sent either.
export function painted() {
  return new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
}

export class Times {
  constructor() {
    this.samples = [];
  }

  get count() {
    return this.samples.length;
  }

  add(times, roundTrip) {
    this.samples.push({ times, roundTrip });
    if (this.samples.length > KEPT) this.samples.shift();
  }

  roundTrip() {
    return median(this.samples.map((sample) => sample.roundTrip));
  }

  stage(key) {
    return median(this.samples.map((sample) => sample.times[key] ?? 0));
  }

  // All stages together.
  server() {
    return Object.keys(STAGES).reduce((sum, key) => sum + this.stage(key), 0);
  }

  // [name, milliseconds] of every stage that took any time, with what the server did not see as the last.
  parts() {
    const stages = Object.entries(STAGES).map(([key, name]) => [name, this.stage(key)]);
    return [...stages.filter(([, value]) => value > 0), [REST, Math.max(0, this.roundTrip() - this.server())]];
  }
}
