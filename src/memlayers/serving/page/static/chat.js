// The chat: every question goes to the memory and to its bare backbone; words that the memory spoke are marked.

import { $, ApiError, count, events, h, request, say } from "./api.js";
import { showFact } from "./detail.js";

let turns = [];

export function startChat(state) {
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    const question = $("question").value.trim();
    if (question) ask(state, question);
  });
  $("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      $("ask").requestSubmit();
    }
  });
  $("anew").addEventListener("click", () => {
    turns = [];
    $("turns").replaceChildren();
    $("question").focus();
  });
}

async function ask(state, question) {
  const button = $("ask").querySelector("[type=submit]");
  if (button.disabled) return;
  button.disabled = true;
  $("question").value = "";
  const id = state.memory.id;
  const cards = [card("With the memory"), card("Without it")];
  const turn = h("section", { class: "turn", "aria-label": question }, h("p", { class: "said" }, question),
    h("div", { class: "sides" }, cards));
  $("turns").append(turn);
  turn.scrollIntoView({ block: "nearest" });
  const asked = { question, answers: ["", ""] };
  const before = turns;
  turns = [...turns, asked];
  await Promise.all([id, `${id}:bare`].map(async (model, side) => {
    const messages = [...before.flatMap((each) => each.answers[side] ? [
      { role: "user", content: each.question }, { role: "assistant", content: each.answers[side] }] : []),
    { role: "user", content: question }];
    try {
      const found = await answered(model, messages, $("abstain").checked && side === 0, cards[side]);
      asked.answers[side] = found.text;
      fill(state, cards[side], found, side === 0);
    } catch (error) {
      cards[side].querySelector(".answer").replaceChildren(h("span", { class: "bad" }, error.message));
      say(error.message, true);
    } finally {
      cards[side].removeAttribute("aria-busy");
    }
  }));
  button.disabled = false;
  turn.scrollIntoView({ block: "nearest" });
}

function card(title) {
  return h("article", { "aria-busy": "true" }, h("h3", {}, title), h("p", { class: "answer" }, "…"));
}

/** Asks one model; its text appears as it comes. */
async function answered(model, messages, abstain, place) {
  const json = { model, messages, stream: true, ...(abstain ? { abstain } : {}) };
  const response = await request("/v1/chat/completions", { method: "POST", json });
  let text = "";
  let memlayers = null;
  for await (const chunk of events(response)) {
    if (chunk.error) throw new ApiError(500, chunk.error);
    text += chunk.choices?.[0]?.delta?.content ?? "";
    memlayers = chunk.memlayers ?? memlayers;
    place.querySelector(".answer").textContent = text || "…";
  }
  return { text, memlayers };
}

function fill(state, place, { text, memlayers }, withMemory) {
  const words = withMemory && memlayers ? marked(state, text, memlayers) : [text];
  place.querySelector(".answer").replaceChildren(...(text ? words : [h("span", { class: "soft" }, "(no answer)")]));
  if (!withMemory || !memlayers) return;
  const said = { memory: "from the memory", backbone: "from the backbone", unknown: "not known" };
  const parts = [h("span", { class: "badge" }, said[memlayers.source] ?? memlayers.source)];
  if (memlayers.score !== null && memlayers.source === "memory") parts.push(` score ${memlayers.score.toFixed(2)}`);
  if (memlayers.identical_to_backbone) parts.push(" the memory was not read: the same as without it, to the bit");
  for (const each of memlayers.taken_for) parts.push(` “${each.words}” was taken for ${each.subject}`);
  place.append(h("p", { class: "soft" }, parts, ` · version ${memlayers.version}`));
  const places = memlayers.facts.flatMap((fact) => fact.sources.map((source) => source.place));
  if (memlayers.facts.length) {
    place.append(h("p", { class: "soft" }, `${count(memlayers.facts.length, "fact")}`,
      places.length ? `: ${places.join("; ")}` : ", no source noted"));
  }
}

/** The answer's text with its runs of open tokens as buttons. Positions count characters, not UTF-16 units. */
function marked(state, text, memlayers) {
  const characters = Array.from(text);
  const runs = [];
  for (const { token, position } of memlayers.open_tokens) {
    const end = position + Array.from(token).length;
    const last = runs.at(-1);
    if (last && last[1] >= position) last[1] = Math.max(last[1], end);
    else runs.push([position, end]);
  }
  const parts = [];
  let at = 0;
  for (const [start, end] of runs) {
    parts.push(characters.slice(at, start).join(""));
    const words = characters.slice(start, end).join("");
    parts.push(h("button", {
      type: "button", class: "spoke", title: "The memory spoke here", "aria-haspopup": "dialog",
      "aria-label": `${words.trim()}: the memory spoke here; show the fact`,
      onclick: () => showFact(state, memlayers, words),
    }, words));
    at = end;
  }
  parts.push(characters.slice(at).join(""));
  return parts;
}
