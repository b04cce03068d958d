// The table of facts: search, add, correct, forget.

import { $, count, encoded, getJson, h, say, tried } from "./api.js";
import { correct, forget, showStored } from "./detail.js";

const PAGE = 50;
let state = null;
let shown = 0;
let latest = 0;
let last = null;

export function startFacts(given) {
  state = given;
  let timer = 0;
  $("search").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => tried(() => showFacts()), 200);
  });
  $("more").addEventListener("click", (event) => tried(() => more(), event.target));
  $("add").addEventListener("submit", (event) => {
    event.preventDefault();
    tried(add, event.submitter);
  });
}

/** The first page of what the search finds. */
export async function showFacts() {
  const mine = ++latest;
  const found = await getJson(`${state.at}/facts?limit=${PAGE}&q=${encoded($("search").value)}`);
  if (mine !== latest) return;  // another search has begun since
  shown = 0;
  $("table").tBodies[0].replaceChildren();
  put(found);
}

async function more() {
  const mine = latest;
  const found = await getJson(
    `${state.at}/facts?limit=${PAGE}&q=${encoded($("search").value)}&after=${encoded(last)}`);
  if (mine === latest) put(found);
}

function put(found) {
  shown += found.data.length;
  last = found.last_id;
  $("found").textContent = `${count(found.total, "fact")}${shown < found.total ? `, ${shown} shown` : ""}`;
  $("more").hidden = !found.has_more;
  $("table").tBodies[0].append(...found.data.map(row));
  $("table").classList.add("cards");
}

function row(fact) {
  const name = [fact.subject, fact.relation].filter(Boolean).join(", ") || fact.id;
  const places = fact.sources.map((source) => source.place);
  const editable = state.memory.editable;
  return h("tr", {},
    h("td", { "data-label": "Subject" }, h("button", {
      type: "button", class: "plain", "aria-haspopup": "dialog", "aria-label": `${name}: show the fact`,
      onclick: () => tried(() => showStored(state, fact.id)),
    }, fact.subject || fact.questions[0])),
    h("td", { "data-label": "Relation" }, fact.relation),
    h("td", { "data-label": "Answer" }, fact.answer),
    h("td", { "data-label": "Source", class: "soft" }, places.join("; ") || "none noted"),
    h("td", {}, h("div", { class: "line actions" },
      h("button", { type: "button", disabled: !editable, "aria-label": `Correct ${name}`,
        onclick: () => correct(state, fact) }, "Correct"),
      h("button", { type: "button", disabled: !editable, "aria-label": `Forget ${name}`,
        onclick: (event) => forget(state, fact, event.target) }, "Forget"))));
}

async function add() {
  const value = (id) => $(id).value.trim();
  const questions = value("add-questions").split("\n").map((line) => line.trim()).filter(Boolean);
  const fact = { subject: value("add-subject"), relation: value("add-relation"), answer: value("add-answer") };
  if (questions.length) fact.questions = questions;
  say(`Learning about ${fact.subject} …`);
  await getJson(`${state.at}/facts`, { method: "POST", json: fact });
  $("add").reset();
  say(`${fact.subject}, ${fact.relation}: learned.`);
  await state.refresh();
}
