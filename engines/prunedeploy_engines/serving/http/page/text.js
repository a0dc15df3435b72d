// Words and numbers for people, and elements that hold them. Only text is ever put into the page, never markup.

export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

export function cell(text, numeric = false) {
  return element("td", { textContent: text, className: numeric ? "number" : "" });
}

export function heading(text, scope = "row") {
  return element("th", { textContent: text, scope });
}

export function plural(count, word) {
  return `${count} ${word}${count === 1 ? "" : "s"}`;
}

// 573247 -> "573 k", 2265119 -> "2.27 M": three digits.
export function short(number) {
  if (!Number.isFinite(number)) return "–";
  for (const [unit, size] of [["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (Math.abs(number) >= size) return `${Number((number / size).toPrecision(3))} ${unit}`;
  }
  return String(number);
}

export function bytes(number) {
  if (!Number.isFinite(number)) return "–";
  return number < 1000 ? `${number} B` : `${short(number)}B`;
}

export function fraction(number) {
  return Number.isFinite(number) ? number.toFixed(3) : "–";
}

export function milliseconds(number) {
  return Number.isFinite(number) ? number.toFixed(number < 100 ? 1 : 0) : "–";
}

export function median(numbers) {
  const sorted = [...numbers].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}
