// What the page asks the server, and what each refusal means in words.

// Detections are asked for once, down to this score; the slider then only hides some of them. Greedy suppression never
// lets a lower score remove a higher one, so what is left is what the server would have given for the slider's score.
export const LOWEST_SCORE = 0.05;

let token = null;
let limits = { max_body_bytes: Infinity, max_pixels: Infinity };

export class Refusal extends Error {
  constructor(message, status = 0, retryAfter = 0) {
    super(message);
    this.status = status; // of HTTP; 0: there was no answer
    this.retryAfter = retryAfter; // seconds
  }
}

// Kept in this variable alone: neither stored nor put into an address.
export function useToken(text) {
  token = text;
}

export async function listModels() {
  limits = await ask("static/limits.json");
  return (await ask("v1/models")).models;
}

// image: { blob, width, height }. Returns the server's answer for it and how long that took, seen from here.
export async function detect(model, image, signal) {
  if (image.blob.size > limits.max_body_bytes) {
    throw new Refusal(`${tooLarge} It has ${megabytes(image.blob.size)}, the limit is ${megabytes(limits.max_body_bytes)}.`, 413);
  }
  if (image.width * image.height > limits.max_pixels) {
    throw new Refusal(`${tooLarge} It has ${image.width} x ${image.height} pixels, the limit is ${limits.max_pixels / 1e6} million.`, 413);
  }
  const query = new URLSearchParams({ model, score_threshold: LOWEST_SCORE });
  const started = performance.now();
  const content = await ask(`v1/detect?${query}`, {
    method: "POST",
    body: image.blob,
    headers: { "Content-Type": image.blob.type || "application/octet-stream" },
    signal,
  });
  const roundTrip = performance.now() - started;
  const { width, height, detections } = content.images[0];
  return { width, height, detections, times: content.times_ms, roundTrip };
}

async function ask(address, options = {}) {
  const headers = { Accept: "application/json", ...options.headers };
  if (token !== null) headers.Authorization = `Bearer ${token}`;
  let answer;
  try {
    answer = await fetch(address, { ...options, headers, cache: "no-store", credentials: "omit", redirect: "error" });
    if (answer.ok) return await answer.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The server does not answer. Is it still running, and is the network up?");
  }
  throw new Refusal(await inWords(answer), answer.status, Number(answer.headers.get("Retry-After")) || 0);
}

async function inWords(answer) {
  const content = await answer.json().catch(() => ({}));
  const said = typeof content.error === "string" ? ` The server says: ${content.error}` : "";
  const request = answer.headers.get("X-Request-Id");
  switch (answer.status) {
    case 400: case 422: return `The server cannot use this image.${said}`;
    case 401: return token === null ? "This server asks for a token." : "The server does not accept this token.";
    case 404: return `The server does not know this model.${said}`;
    case 413: return `${tooLarge}${said}`;
    case 415: return `The server cannot read this kind of file: send JPEG, PNG or WebP.${said}`;
    case 503: return `The server is busy, or this model is not loaded at the moment.${said}`;
    case 504: return `The server did not answer in time.${said}`;
    default: return `The server failed (${answer.status}); its log says more${request ? ` under request ${request}` : ""}.${said}`;
  }
}

const tooLarge = "This image is too large for the server.";

function megabytes(size) {
  return `${(size / 2 ** 20).toFixed(1)} MiB`;
}
