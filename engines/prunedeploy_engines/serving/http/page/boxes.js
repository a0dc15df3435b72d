// Detections drawn over their image. Colours can be told apart with any colour vision; names stand beside them.

// Okabe and Ito, Color Universal Design, 2008, without black.
const COLOURS = ["#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7"];
// Classes that share a colour differ in the line: solid, dashed, dotted; in line widths.
const DASHES = [[], [5, 2.5], [1.2, 2]];

export function colourOf(index) {
  return COLOURS[index % COLOURS.length];
}

// image: anything a canvas draws; detections with `box` in pixels of a width x height image; indexOf: class name -> number.
export function draw(canvas, image, { width, height }, detections, indexOf) {
  // Small images are enlarged, so that lines and letters stay fine; large ones need not be drawn larger than any screen.
  const longest = Math.max(width, height);
  const scale = longest > 1600 ? 1600 / longest : Math.min(8, Math.max(1, Math.floor(960 / longest)));
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  const line = Math.max(2, Math.min(canvas.width, canvas.height) / 180);
  const ordered = [...detections].reverse(); // the best on top
  for (const one of ordered) frame(pen, one.box.map((value) => value * scale), indexOf(one.class), line);
  for (const one of ordered) label(pen, one.box.map((value) => value * scale), `${one.class} ${one.score.toFixed(2)}`, colourOf(indexOf(one.class)), line);
}

// A dark and a light line under the coloured one: it shows on any background.
function frame(pen, [left, top, right, bottom], index, line) {
  pen.setLineDash([]);
  for (const [style, width] of [["#000c", 2.2 * line], ["#fff", 1.5 * line]]) {
    pen.strokeStyle = style;
    pen.lineWidth = width;
    pen.strokeRect(left, top, right - left, bottom - top);
  }
  pen.strokeStyle = colourOf(index);
  pen.lineWidth = 1.5 * line;
  pen.setLineDash(DASHES[Math.floor(index / COLOURS.length) % DASHES.length].map((length) => length * 2 * line));
  pen.strokeRect(left, top, right - left, bottom - top);
  pen.setLineDash([]);
}

function label(pen, [left, top, , bottom], text, colour, line) {
  const size = Math.max(13, 6.5 * line);
  pen.font = `600 ${size}px system-ui, sans-serif`;
  const width = pen.measureText(text).width + 0.8 * size;
  const height = 1.5 * size;
  const above = top - height - line / 2;
  const x = Math.max(0, Math.min(left - line / 2, pen.canvas.width - width));
  const y = above >= 0 ? above : Math.min(bottom + line / 2, pen.canvas.height - height);
  pen.fillStyle = colour;
  pen.fillRect(x, y, width, height);
  pen.fillStyle = dark(colour) ? "#fff" : "#000";
  pen.textBaseline = "middle";
  pen.fillText(text, x + 0.4 * size, y + height / 2);
}

// WCAG 2.1's relative luminance: below .179 white contrasts more than black.
function dark(colour) {
  const [red, green, blue] = [1, 3, 5]
    .map((at) => parseInt(colour.slice(at, at + 2), 16) / 255)
    .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.179;
}
