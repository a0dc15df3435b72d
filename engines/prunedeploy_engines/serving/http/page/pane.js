// One model's picture, latencies and table of detections.

import { colourOf, draw } from "./boxes.js";
import { badge } from "./models.js";
import { cell, element, heading, milliseconds, plural } from "./text.js";
import { ROUND_TRIP } from "./times.js";

let made = 0;

export class Pane {
  constructor() {
    this.root = document.getElementById("pane").content.firstElementChild.cloneNode(true);
    const name = this.find(".name");
    name.id = `pane-${(made += 1)}`;
    this.root.setAttribute("aria-labelledby", name.id);
    this.shownSize = 0;
    this.clear("");
  }

  find(selector) {
    return this.root.querySelector(selector);
  }

  name(model) {
    this.find(".name").textContent = model.name;
    this.find(".badge").textContent = badge(model);
    this.find("canvas").setAttribute("aria-label", `${model.name}: no image yet`);
    this.find(".scroll").setAttribute("aria-label", `Detections of ${model.name}`);
    this.model = model;
  }

  // Nothing to show, and why.
  clear(why) {
    this.find("canvas").hidden = true;
    this.find(".empty").hidden = false;
    this.find(".empty").textContent = why;
    for (const selector of [".count", ".bar", ".times", ".scroll"]) this.find(selector).hidden = true;
    this.root.setAttribute("aria-busy", "false");
  }

  busy() {
    this.root.setAttribute("aria-busy", "true");
  }

  // answer: what `detect` gives; shown: those of its detections that are to be seen.
  show(image, answer, shown, indexOf) {
    for (const selector of ["canvas", ".count", ".scroll"]) this.find(selector).hidden = false;
    this.find(".empty").hidden = true;
    this.root.setAttribute("aria-busy", "false");
    const canvas = this.find("canvas");
    draw(canvas, image.bitmap, answer, shown, indexOf);
    const words = shown.slice(0, 10).map((one) => `${one.class} ${one.score.toFixed(2)}`).join(", ");
    const more = shown.length > 10 ? ", and more in the table below" : "";
    canvas.setAttribute("aria-label", `${this.model.name} finds ${plural(shown.length, "object")}${words ? `: ${words}${more}` : ""}`);
    const hidden = answer.detections.length - shown.length;
    this.find(".count").replaceChildren(
      element("strong", { textContent: plural(shown.length, "detection") }),
      hidden ? `, ${hidden} more below this score` : "",
    );
    this.find(".detections caption").textContent = `What ${this.model.name} finds, in pixels of the image`;
    this.find(".detections tbody").replaceChildren(...shown.map((one) => row(one, colourOf(indexOf(one.class)))));
  }

  // longest: milliseconds that fill the bar, the same for both panes, so that their bars compare.
  showTimes(times, longest) {
    for (const selector of [".bar", ".times"]) this.find(selector).hidden = false;
    const parts = times.parts();
    this.find(".times caption").textContent =
      times.count > 1 ? `Latency, median of ${times.count} requests` : "Latency of one request";
    this.find(".bar").replaceChildren(
      ...parts.map(([name, value], index) => {
        const piece = element("span", { className: pieceOf(index, parts) , title: `${name}: ${milliseconds(value)} ms` });
        piece.style.width = `${(100 * value) / longest}%`;
        return piece;
      }),
    );
    this.find(".times tbody").replaceChildren(
      ...parts.map(([name, value], index) => timeRow(name, value, pieceOf(index, parts))),
      timeRow(ROUND_TRIP, times.roundTrip(), "total"),
    );
  }
}

// The last part is what the server did not see.
function pieceOf(index, parts) {
  return index === parts.length - 1 ? "piece rest" : `piece piece-${index}`;
}

function timeRow(name, value, className) {
  const key = element("span", { className: `key ${className}` });
  key.setAttribute("aria-hidden", "true");
  const title = heading("");
  title.append(key, name);
  return element("tr", { className: className === "total" ? "total" : "" }, title, cell(`${milliseconds(value)} ms`, true));
}

function row({ class: name, score, box: [left, top, right, bottom] }, colour) {
  const key = element("span", { className: "key" });
  key.setAttribute("aria-hidden", "true");
  key.style.backgroundColor = colour;
  const title = heading("");
  title.append(key, name);
  const numbers = [left, top, right - left, bottom - top].map((value) => cell(value.toFixed(0), true));
  return element("tr", {}, title, cell(score.toFixed(3), true), ...numbers);
}
