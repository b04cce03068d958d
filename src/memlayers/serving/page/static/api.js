// Requests to the server, its key, and its events. No text that comes back is ever markup.

const KEY = "memlayers-key";

export class ApiError extends Error {
  constructor(status, error) {
    super(error?.message ?? `the server answered ${status}`);
    this.status = status;
    this.code = error?.code ?? null;
  }
}

/** An element with properties and children; texts become text nodes. */
export function h(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "class") made.className = value;
    else if (name in made && !name.includes("-")) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((each) => each !== null && each !== undefined));
  return made;
}

export const $ = (id) => document.getElementById(id);

let told = 0;

/** Says something in the live region, and takes it away again after a while. */
export function say(message, failed = false) {
  const place = $("status");
  place.classList.toggle("failed", failed);
  place.textContent = message;
  const mine = ++told;
  setTimeout(() => { if (mine === told) place.textContent = ""; }, failed ? 15000 : 6000);
}

/** Runs an action and says what failed; a button is disabled meanwhile. */
export async function tried(action, button = null) {
  if (button) button.disabled = true;
  try {
    return await action();
  } catch (error) {
    if (error.name !== "AbortError") say(error.message, true);
    return undefined;
  } finally {
    if (button) button.disabled = false;
  }
}

let asking = null;

function keyFromUser() {
  asking ??= new Promise((resolve) => {
    const dialog = $("key");
    dialog.addEventListener("close", () => {
      const key = $("key-text").value.trim();
      $("key-text").value = "";
      asking = null;
      if (key) sessionStorage.setItem(KEY, key);
      resolve(Boolean(key));
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

/** A request; asks for the key where the server does. Resolves to the response, whatever it is made of. */
export async function request(path, { method = "GET", json, form, signal } = {}) {
  for (;;) {
    const headers = {};
    const key = sessionStorage.getItem(KEY);
    if (key) headers.Authorization = `Bearer ${key}`;
    if (json !== undefined) headers["Content-Type"] = "application/json";
    let response;
    try {
      response = await fetch(path, { method, headers, signal, body: json !== undefined ? JSON.stringify(json) : form });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, { message: "the server cannot be reached" });
    }
    if (response.ok) return response;
    const body = await response.json().catch(() => ({}));
    if (response.status === 401 && await keyFromUser()) continue;
    throw new ApiError(response.status, body.error);
  }
}

export async function getJson(path, options) {
  return (await request(path, options)).json();
}

/** The data of a response's server-sent events, one by one. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart());
      const text = data.join("\n");
      if (!text || text === "[DONE]") continue;
      const event = JSON.parse(text);
      if (event.error && event.type !== "error") throw new ApiError(500, event.error);
      yield event;
    }
  }
}

export const encoded = encodeURIComponent;

/** A time of the journal, as this machine writes it. */
export const when = (time) => new Date(time).toLocaleString();

export const count = (number, one, several = `${one}s`) => `${number.toLocaleString()} ${number === 1 ? one : several}`;
